"""The proof of a sparse backbone's file: structure, then every layer and the dense map against spconv."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from mmdeploy_ext.cli import one_line, stderr
from mmdeploy_ext.errors import ModelFileError, UsageError
from mmdeploy_ext.files import read_json, sha256_file
from mmdeploy_ext.graph import edits
from mmdeploy_ext.graph.same import differences, size
from mmdeploy_ext.metadata_entries import PREFIX, check_entries, read_entry
from mmdeploy_ext.metadata_schema import SPARSE_OPTIONS
from mmdeploy_ext.precision import written_precision
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.contract import load_model
from mmdeploy_ext.sparse.deploy import ScnOptions, fp16_modules, make_graph, metadata_props, resolve
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.ir import Add, SparseConvolution
from mmdeploy_ext.sparse.libspconv import read, to_node_list
from mmdeploy_ext.sparse.order import reorder
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.portable import to_onnx
from mmdeploy_ext.sparse.rulebook import build
from mmdeploy_ext.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.verify import sparse_structure
from mmdeploy_ext.verify.compare import compare_tensors, failed_row
from mmdeploy_ext.verify.graph_level import told_otherwise
from mmdeploy_ext.verify.portable_layers import PortableLayers
from mmdeploy_ext.verify.provenance import hash_checks, settings_check
from mmdeploy_ext.verify.spconv_layers import LayerOutput, layer_sources, watched
from mmdeploy_ext.verify.subject import data_hashes
from mmdeploy_ext.verify.tasks.bev import BevPair
from mmdeploy_ext.verify.verdict import EDITED, Case, Check, GraphResult, TensorRow, Verdict
from mmdeploy_ext.verify.voxel_sets import proof_sets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from mmdeploy_ext.quantize.ranges import Ranges
    from mmdeploy_ext.sparse.deploy import SparseDeployment
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.verify.voxel_sets import VoxelSet

EXACT_RTOL = 1e-4
"""Of the largest reference value: float32 against float32."""
HALF_RTOL = 5e-3
"""The same for the file's fp16 weights against the model's float32 ones."""
DRAWN_VOXELS = 500
"""Smaller inputs give no picture worth looking at."""


def stored_fact(model: onnx.ModelProto, path: str, name: str, default: str = '') -> Any:
    """Return what a file says about itself under a name, e.g. 'family'.

    Args:
        model: its content.
        path: of it, for the message.
        name: of the entry.
        default: JSON that stands for one that older files lack; '' where it has to be there.

    Raises:
        ModelFileError: it was not written by mm2onnx, or its metadata is damaged.
    """
    props = {entry.key: entry.value for entry in model.metadata_props}
    if PREFIX + name not in props and not default:
        raise ModelFileError(
            f'{path}: has no mm2onnx metadata ({PREFIX}{name} is missing); export it with '
            f'tools/deployment/export_scn.py'
        )
    return read_entry(props, name, path, default, check=SPARSE_OPTIONS if name == 'options' else None)


def file_options(model: onnx.ModelProto, path: str) -> ScnOptions:
    """Return the options that a file was exported with.

    Raises:
        ModelFileError: see `stored_fact`.
    """
    check_entries({entry.key: entry.value for entry in model.metadata_props}, path)
    return ScnOptions.from_json(stored_fact(model, path, 'options'))


def recorded_ranges(model: onnx.ModelProto, path: str) -> Ranges | None:
    """Return the ranges that a file was exported with, None where it is too old to say.

    Raises:
        ModelFileError: damaged.
    """
    from mmdeploy_ext.quantize.ranges import Ranges

    if not any(entry.key == f'{PREFIX}ranges' for entry in model.metadata_props):
        return None
    try:
        return Ranges.from_json(stored_fact(model, path, 'ranges'), f'{path}: {PREFIX}ranges')
    except UsageError as error:
        raise ModelFileError(str(error)) from error


def weight_ranges_check(deployment: SparseDeployment, traced: SparseGraph, ranges: Ranges) -> Check:
    """Compute the ranges of all weights again: of the folded kernels or those before, or of the checkpoint.

    Args:
        deployment: the config and checkpoint.
        traced: the model's graph before folding.
        ranges: of a file.
    """
    from mmdeploy_ext.quantize.calibrators import weight_amax
    from mmdeploy_ext.quantize.deployed import from_checkpoint

    folded = fold(traced, 'fp32')
    before = {node.module: node.weight for node in traced.convolutions()}
    stored = from_checkpoint(deployment)
    wrong = []
    for node in folded.convolutions():
        right = [weight_amax(kernel) for kernel in (node.weight, before.get(node.module, node.weight))]
        right += [stored.weight_amax(node.name)] if stored else []
        found = ranges.weight_amax(node.name)
        exact = [np.asarray(one, np.float32) for one in right]
        half = [one.astype(np.float16).astype(np.float32) for one in exact]
        if not any(np.array_equal(found, one) for one in (*exact, *half)):
            wrong.append(
                f'{node.name}: {float(found.max()):.6g}, expected {float(exact[0].max()):.6g} at most'
            )
    return Check('ranges of the weights follow from the weights', not wrong, '; '.join(wrong)[:300])


def stored_ranges(path: str) -> Ranges:
    """Return the ranges that a libspconv file holds, to see that all else in it is the model's."""
    from mmdeploy_ext.quantize.ranges import NodeRange, Ranges

    nodes = {}
    for node in read(path).nodes:
        if isinstance(node, SparseConvolution):
            weights = None if node.weight_ranges is None else tuple(map(float, node.weight_ranges))
            nodes[node.name] = NodeRange(node.module, node.input_range, weights)
        elif isinstance(node, Add):
            nodes[node.name] = NodeRange(node.module, node.input_range)
    return Ranges(nodes, 'file', str(path), 0, '', path=str(path))


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is proven.

    Attributes:
        deployment: config and checkpoint.
        path: of the file.
        model: its content.
        options: that it was exported with.
        traced: the model's graph before folding.
        expected: the graph that the file should hold, weights in float32.
        exact: the same folded in float32, whatever the file's folding.
        ranges: whether the ranges of the weights follow from the weights; None where there are none, or were
            given beside the file.
    """

    deployment: SparseDeployment
    path: str
    model: onnx.ModelProto
    options: ScnOptions
    traced: SparseGraph
    expected: SparseGraph
    exact: SparseGraph
    ranges: Check | None = None

    @property
    def same_order(self) -> bool:
        """Whether the file's coordinates are in the module's own order."""
        return self.options.order == self.deployment.settings.order


def prove(
    deployment: SparseDeployment,
    path: str,
    sweeps: Sequence[VoxelSet] = (),
    *,
    ranges: Ranges | None = None,
    max_voxels: int | None = None,
    node_list: str = '',
    threads: int = 0,
    edited: bool = False,
) -> tuple[Verdict, list[BevPair]]:
    """Prove one file.

    Args:
        deployment: the config and checkpoint that it claims to be.
        path: the file, of either target.
        sweeps: real voxels besides the synthetic ones, coordinates in the model's own order.
        ranges: that it was exported with, where it has any.
        max_voxels: see `contract.check`.
        node_list: stored node list of the reference exporter that it has to equal, a JSON file.
        threads: of ONNX Runtime; 0: it decides.
        edited: the file was edited on purpose: inputs alone decide about its graph.

    Returns:
        The verdict, and dense maps for the report.

    Raises:
        ModelFileError: a file that cannot be read, or of another family.
    """
    subject = _subject(deployment, path, ranges)
    verdict = _check_file(subject, max_voxels, edited)
    if node_list:
        wanted = read_json(node_list)
        found = to_node_list(subject.model)
        verdict.structure += sparse_structure.compare_node_lists(found, wanted, Path(node_list).name)
    settings = deployment.settings
    sets = [*proof_sets(settings.spatial_shape, settings.in_channels), *sweeps]
    pictures = []
    try:
        candidate = _candidate(subject, threads)
    except ValueError as error:
        verdict.reasons.append(f'the file cannot be run: {one_line(error)[:300]}')
        return verdict, pictures
    console = stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for voxels in bar.track(sets, description='proving'):
            case, pair, timing = candidate.run(voxels)
            verdict.cases.append(case)
            if pair is not None and len(voxels.features) >= DRAWN_VOXELS:
                pictures.append(pair)
                verdict.timing_ms = timing
    return verdict, pictures[::-1]


def _subject(deployment: SparseDeployment, path: str, ranges: Ranges | None) -> Subject:
    model = load_model(path)
    options = resolve(file_options(model, path), deployment.family)
    said = stored_fact(model, path, 'family')
    if said != deployment.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {said!r}; {deployment.config} is {deployment.family.name!r}'
        )
    traced = deployment.trace()
    given = ranges is not None
    if not given and options.has_precision:
        ranges = recorded_ranges(model, path) or stored_ranges(path)
    expected = make_graph(traced, options, deployment.family, ranges)
    rounded = options.fold == 'fp16' or fp16_modules(options, deployment.family)
    exact = reorder(fold(traced, 'fp32'), options.order) if rounded else expected
    derived = None if given or ranges is None else weight_ranges_check(deployment, traced, ranges)
    return Subject(deployment, path, model, options, traced, expected, exact, derived)


def _check_file(subject: Subject, max_voxels: int | None, edited: bool) -> Verdict:
    """Return level 1 as the beginning of a verdict."""
    verdict, deployment = Verdict(subject=_facts(subject)), subject.deployment
    if subject.options.target == 'libspconv':
        checks, verdict.notes = sparse_structure.check_dialect(subject.path, subject.model, max_voxels)
        same = sparse_structure.dialect_differences(subject.path, subject.model, subject.expected)
        if subject.options.has_precision:
            verdict.notes.append(
                'layers are compared in float32: what int8 does to the values is measured by '
                'tools/quantization/scn_ptq.py'
            )
    else:
        checks = sparse_structure.check_portable(subject.model)
        done = stored_fact(subject.model, subject.path, 'edits', '[]')
        fresh = edits.repeat(to_onnx(subject.expected, form=subject.options.form), done)
        same = differences(subject.model, fresh) or told_otherwise(subject.model, fresh)
    nodes = size(subject.model)
    graph = (
        GraphResult('', nodes, False, by_inputs=EDITED)
        if edited
        else GraphResult('', nodes, not same, tuple(same))
    )
    written = {
        title: stored_fact(subject.model, subject.path, f'{title}_sha256')
        for title in ('checkpoint', 'config')
    }
    hashes, notes = hash_checks(deployment, written, graph.equal)
    overrides = stored_fact(subject.model, subject.path, 'options').get('cfg_options') or {}
    checks += [*hashes, settings_check(deployment.cfg, overrides), _says_check(subject)]
    verdict.graphs, verdict.structure = [graph], checks
    verdict.structure += [subject.ranges] * (subject.ranges is not None)
    verdict.notes += notes
    return verdict


def _says_check(subject: Subject) -> Check:
    """Check that a file says of itself what config and options say; runtimes take its word for voxels."""
    facts = metadata_props(subject.deployment, subject.options)
    wrong = [
        f'{name}: the file says {said}'
        for name in ('form', 'voxels')
        if (said := stored_fact(subject.model, subject.path, name)) != json.loads(facts[PREFIX + name])
    ]
    if subject.options.int8_fp16_io and subject.options.precision != 'int8':
        wrong.append('options: int8_fp16_io goes with precision int8')
    return Check('form and voxels as in the config', not wrong, '; '.join(wrong)[:300])


def _facts(subject: Subject) -> dict[str, Any]:
    deployment, options = subject.deployment, subject.options
    from mmdeploy_ext.export import versions

    return dict(
        file=str(subject.path),
        file_sha256=sha256_file(subject.path),
        **data_hashes([subject.path]),
        family=deployment.family.name,
        task='bev',
        form=options.target,
        options=dict(options.to_json(), cfg_options=deployment.cfg_options),
        order=options.order,
        precision=precision_of(subject.model, options),
        grid='x'.join(map(str, subject.expected.spatial_shape)),
        output='x'.join(map(str, subject.expected.output_shape)),
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        proven_with=versions(),
        python=platform.python_version(),
    )


def precision_of(model: onnx.ModelProto, options: ScnOptions) -> str:
    """Return what a file is judged as: 'int8', 'fp16' as all other files of the dialect, or 'fp32'.

    The engine takes its weights in float16, and computes in INT8 where ranges say so.
    """
    if options.target == 'libspconv':
        quantised = options.precision == 'int8' or any(
            'int8' in entry[1:] for entry in options.layer_precision
        )
        return 'int8' if quantised else 'fp16'
    return written_precision(model)


def _candidate(subject: Subject, threads: int) -> _Dialect | _Portable:
    return _Dialect(subject) if subject.options.target == 'libspconv' else _Portable(subject, threads)


@dataclasses.dataclass
class Reference:
    """What spconv gave for one set of voxels: the dense map, every layer, milliseconds."""

    dense: np.ndarray
    layers: dict[str, LayerOutput]
    milliseconds: float


def run_reference(subject: Subject, voxels: VoxelSet) -> Reference:
    """Run the unpatched model on spconv, one thread, and watch its convolutions."""
    family, model = subject.deployment.family, subject.deployment.model
    with watched(family.encoder(model), layer_sources(subject.traced)) as layers:
        start = time.perf_counter()
        dense = family.reference(model, voxels.features, voxels.coordinates)
        milliseconds = (time.perf_counter() - start) * 1e3
    return Reference(dense, layers, milliseconds)


class _Dialect:
    """A libspconv file, interpreted in numpy: the engine itself needs a GPU."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.graph = read(subject.path)
        self.plan, self.exact_plan = plan_of(self.graph), plan_of(subject.exact)

    def run(self, voxels: VoxelSet) -> tuple[Case, BevPair | None, dict[str, float]]:
        """Compare one set of voxels."""
        reference = run_reference(self.subject, voxels)
        try:
            return self._compare(voxels, reference)
        except (ValueError, IndexError) as error:
            row = failed_row(
                'dense map', f'the graph cannot be run: {one_line(error)[:200]}', reference.dense
            )
            return _case(voxels, [row]), None, {}

    def _compare(self, voxels: VoxelSet, reference: Reference) -> tuple[Case, BevPair, dict[str, float]]:
        coordinates = voxels.in_order(self.subject.same_order)
        found: dict[str, np.ndarray] = {}
        rulebook = build(self.plan, coordinates)
        start = time.perf_counter()
        dense = engine.run(self.graph, coordinates, voxels.features, found.__setitem__, rulebook=rulebook)
        milliseconds = (time.perf_counter() - start) * 1e3
        rows = self._layer_rows(reference, found, rulebook) if len(coordinates) else []
        exact = engine.run(self.subject.exact, coordinates, voxels.features)
        rows += compare({'dense map': reference.dense}, {'dense map': dense}, HALF_RTOL)
        name = 'dense map, weights before rounding'
        rows += compare({name: reference.dense}, {name: exact}, EXACT_RTOL)
        pair = BevPair(_title(voxels), reference.dense[0], dense[0], 'the file, interpreted')
        timing = {'spconv, one thread': reference.milliseconds, 'numpy interpreter': milliseconds}
        return _case(voxels, rows), pair, timing

    def _layer_rows(
        self, reference: Reference, found: Mapping[str, np.ndarray], rulebook: Any
    ) -> list[TensorRow]:
        rows = []
        for node, wanted in zip(self.graph.convolutions(), self.subject.expected.convolutions(), strict=True):
            name, expected = f'{node.name} {wanted.module}', reference.layers.get(wanted.module)
            sites = _in_own_order(self.subject, rulebook.level(node.output).coordinates)
            rows.extend(layer_rows(name, expected, sites, found[node.name], HALF_RTOL))
        return rows


def _in_own_order(subject: Subject, sites: np.ndarray) -> np.ndarray:
    """Return sites (M, 4) of the file in the module's order."""
    return sites if subject.same_order else sites[:, [0, 3, 2, 1]]


def layer_rows(
    name: str, expected: LayerOutput | None, sites: np.ndarray, features: np.ndarray, rtol: float
) -> list[TensorRow]:
    """Compare one layer, site by site; the order of the rows is each engine's own.

    Args:
        name: of the layer.
        expected: of spconv; None when its convolution did not run.
        sites: (M, 4) of the candidate, in the module's order.
        features: (M, C) of the candidate.
        rtol: of the largest reference value.
    """
    if expected is None:
        return [failed_row(name, 'missing in the reference: its convolution did not run')]
    left, right = (np.lexsort(array.T[::-1]) for array in (expected.coordinates, sites))
    if not np.array_equal(expected.coordinates[left], sites[right]):
        only = len({*map(tuple, expected.coordinates.tolist())} ^ {*map(tuple, sites.tolist())})
        reason = f'active sites: {len(sites)}, expected {len(left)}; {only} are on one side only'
        return [failed_row(name, reason, expected.features)]
    if len(features) != len(sites):
        return [failed_row(name, f'{len(features)} rows, expected {len(sites)}', expected.features)]
    return compare({name: expected.features[left]}, {name: features[right]}, rtol)


class _Portable:
    """A portable file on ONNX Runtime."""

    title = 'ONNX Runtime'

    def __init__(self, subject: Subject, threads: int) -> None:
        from mmdeploy_ext.runtime.scn import ScnOnnx

        self.subject = subject
        self.engine = ScnOnnx(subject.path, threads=threads)
        nodes = [node.name for node in subject.expected.convolutions()]
        self.layers = PortableLayers(subject.model, nodes, self.engine.threads)

    def run(self, voxels: VoxelSet) -> tuple[Case, BevPair | None, dict[str, float]]:
        """Compare one set of voxels."""
        reference = run_reference(self.subject, voxels)
        coordinates = voxels.in_order(self.subject.same_order)
        start = time.perf_counter()
        try:
            dense = self.engine.step(voxels=(voxels.features, coordinates))
        except ValueError as error:
            row = failed_row('dense map', f'the engine failed: {one_line(error)[:200]}', reference.dense)
            return _case(voxels, [row]), None, {}
        milliseconds = (time.perf_counter() - start) * 1e3
        rows = self._layer_rows(reference, voxels.features, coordinates) if len(coordinates) else []
        rows += compare({'dense map': reference.dense}, {'dense map': dense}, EXACT_RTOL)
        pair = BevPair(_title(voxels), reference.dense[0], dense[0], self.title)
        timing = {'spconv, one thread': reference.milliseconds, 'rulebook and ONNX Runtime': milliseconds}
        return _case(voxels, rows), pair, timing

    def _layer_rows(
        self, reference: Reference, features: np.ndarray, coordinates: np.ndarray
    ) -> list[TensorRow]:
        found = self.layers.run(self.engine.feeds(features, coordinates))
        plan, rows = self.engine.plan, []
        levels = build(plan, coordinates).levels
        for node in self.subject.expected.convolutions():
            name, expected = f'{node.name} {node.module}', reference.layers.get(node.module)
            if node.name not in found or node.output not in plan.level_of:
                rows.append(failed_row(name, 'the file has no such layer'))
                continue
            sites = levels[plan.level_of[node.output]].coordinates
            values = found[node.name]
            values = values[:-1] if self.engine.form == 'buckets' else values
            rows.extend(layer_rows(name, expected, _in_own_order(self.subject, sites), values, EXACT_RTOL))
        return rows


def compare(
    reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], rtol: float
) -> list[TensorRow]:
    """Compare named tensors, each by its own largest value."""
    groups = (ColumnGroup(rtol=rtol),)
    outputs = tuple(
        TensorSpec(name, 'float32', array.shape, groups=groups) for name, array in reference.items()
    )
    return compare_tensors(reference, candidate, GraphSpec('scn', (), outputs))


def _case(voxels: VoxelSet, rows: Sequence[TensorRow]) -> Case:
    shape = 'x'.join(map(str, voxels.features.shape))
    return Case(voxels.name, shape, voxels.traced, tuple(rows))


def _title(voxels: VoxelSet) -> str:
    return f'{voxels.name}, {len(voxels.features)} voxels'
