"""The proof of a sparse backbone's file: structure, every layer and the dense map against spconv."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import Mm2OnnxError, ModelFileError, UsageError, one_line
from mmdeploy_ext.base.files import read_json, sha256_onnx
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.exporting.int8.calibrators import weight_amax
from mmdeploy_ext.exporting.sparse import libspconv, portable
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.libspconv import read, to_node_list
from mmdeploy_ext.exporting.sparse.ranges import Ranges
from mmdeploy_ext.exporting.sparse.trace import LayerSource, layer_sources
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.families.backbone_files import has_precision
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.graphs import signature
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.graphs.io.index import count_nodes
from mmdeploy_ext.proving.file_checks import (
    check_dialect,
    check_inference,
    check_not_random,
    check_valid,
    differing_facts,
)
from mmdeploy_ext.proving.inputs import in_order, proof_sets
from mmdeploy_ext.proving.preprocessing import compare_voxels
from mmdeploy_ext.proving.proof import check, compare_samples, finish
from mmdeploy_ext.proving.provenance import settings_check
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution, differences
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.comparison import compare_named, failed_row
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.metadata import PREFIX, check_entries, entries_of, read_entry
from mmdeploy_ext.spec.results import Case, Check, GraphDifference, GraphResult, Pair, first_lines
from mmdeploy_ext.spec.tensors import written_precision
from mmdeploy_ext.spec.verdict import AS_IN_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import ChosenSamples, VoxelSet
    from mmdeploy_ext.proving.proof import Proof
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import TensorRow
    from mmdeploy_ext.spec.verdict import Verdict


# Checks of a sparse backbone's file against its model and engine.


UNCOMPARED = ('about', 'ir_version', 'onnx_package')
"""Keys of a node list that are not compared."""


@dataclasses.dataclass(frozen=True)
class SparseFile:
    """A file of a sparse backbone, and the graphs that it is compared with.

    Attributes:
        export_options: resolved options of its export.
        traced: the model's graph before folding.
        expected: the graph that the file should hold, in float32.
        exact: folded in float32, if the file's convolutions were folded in float16; else `expected`.
        ranges: the check of the weights' ranges, or None.
        name: '': the model is one file.
    """

    detector: Detector
    path: str
    model: onnx.ModelProto
    export_options: Options
    traced: SparseGraph
    expected: SparseGraph
    exact: SparseGraph
    ranges: Check | None = None
    name: ClassVar[str] = ''

    @property
    def options(self) -> dict[str, Any]:
        return read_fact(self.model, self.path, 'options')

    @property
    def edits(self) -> list[str]:
        return read_fact(self.model, self.path, 'edits')

    @property
    def hashes(self) -> dict[str, str]:
        titles = 'checkpoint', 'config'
        return {title: read_fact(self.model, self.path, f'{title}_sha256') for title in titles}

    @property
    def model_classes(self) -> list[dict[str, Any]]:
        return read_fact(self.model, self.path, 'model_classes')

    @property
    def same_order(self) -> bool:
        return self.export_options.order == self.detector.settings.order

    @property
    def precision(self) -> str:
        if self.export_options.target == 'libspconv':
            return 'int8' if deploy.has_int8(self.export_options) else 'fp16'
        return written_precision(self.model)


def read_fact(model: onnx.ModelProto, path: str, name: str) -> Any:
    """Return an entry of a file's metadata; ModelFileError: it is damaged."""
    return read_entry(entries_of(model.metadata_props), name, path)


def file_options(model: onnx.ModelProto, path: str) -> dict[str, Any]:
    """Return the options, with `cfg_options`, of a file's export; check all entries."""
    check_entries(entries_of(model.metadata_props), path)
    return read_fact(model, path, 'options')


def read_sparse_file(detector: Detector, path: str, ranges: Ranges | None) -> SparseFile:
    """Read a file and make its expected graphs."""
    model = files.read(path)
    if not is_sparse(model):
        model = files.load(path)
    option_values = file_options(model, path)
    family = read_fact(model, path, 'family')
    if family != detector.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {family!r}; {detector.config} is {detector.family.name!r}'
        )
    options = exported_options(detector.family, option_values, path)
    traced = deploy.trace(detector)
    are_recorded = ranges is None and deploy.has_precision(options)
    if are_recorded and any(entry.key == f'{PREFIX}ranges' for entry in model.metadata_props):
        try:
            ranges = Ranges.from_json(read_fact(model, path, 'ranges'), f'{path}: {PREFIX}ranges')
        except UsageError as error:
            raise ModelFileError(str(error)) from error
    expected = deploy.make_graph(traced, options, detector.family, ranges)
    is_rounded = options.fold == 'fp16' or deploy.fp16_modules(options, detector.family)
    exact = reorder(fold(traced, 'fp32'), options.order) if is_rounded else expected
    ranges_check = None
    if are_recorded and ranges is not None:
        ranges_check = weight_ranges_check(detector, traced, ranges)
    return SparseFile(detector, path, model, options, traced, expected, exact, ranges_check)


def compare_graph(file: SparseFile) -> GraphResult:
    """Compare the graph of a file with the graph that its model gives."""
    if file.export_options.target == 'libspconv':
        found = dialect_differences(file.path, file.model, file.expected)
    else:
        fresh = portable.to_onnx(file.expected, form=file.export_options.form)
        found = differing_facts(file.model, fresh) or signature.differences(file.model, fresh)
    return GraphResult('', count_nodes(file.model), not found, tuple(found))


def dialect_differences(path: str, model: onnx.ModelProto, expected: SparseGraph) -> list[GraphDifference]:
    """Return differences of a libspconv file from its model's graph, with names and order of nodes."""
    file_list, model_list = libspconv.to_node_list(model), libspconv.to_node_list(libspconv.to_onnx(expected))
    keys = [key for key in dict.fromkeys([*file_list, *model_list]) if key not in UNCOMPARED]
    lines = [line for key in keys for line in _differing(file_list.get(key), model_list.get(key), key)]
    try:
        lines += differences(libspconv.read(path), as_written(expected))
    except Mm2OnnxError as error:
        lines.append(f'file: cannot be read: {error}')
    parts = (line.partition(': ') for line in lines)
    return [GraphDifference('node', place, '', detail) for place, _, detail in parts]


def as_written(graph: SparseGraph) -> SparseGraph:
    """Return the graph with fp16 weights and float32 ranges, as in a libspconv file."""

    def rounded(node: Any) -> Any:
        changes: dict[str, Any] = {}
        if isinstance(node, SparseConvolution | Add) and node.input_range is not None:
            changes['input_range'] = float(np.float32(node.input_range))
        if isinstance(node, SparseConvolution):
            changes.update(weight=node.weight.astype(np.float16), bias=node.bias.astype(np.float16))
            if node.weight_ranges is not None:
                changes['weight_ranges'] = np.asarray(node.weight_ranges, np.float32)
        return dataclasses.replace(node, **changes) if changes else node

    return dataclasses.replace(graph, nodes=tuple(map(rounded, graph.nodes)))


def _differing(value: Any, expected: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in dict.fromkeys([*value, *expected]):
            if key in UNCOMPARED:
                continue
            if key not in value or key not in expected:
                yield f'{place}.{key}: {"missing" if key not in value else "not expected"}'
            else:
                yield from _differing(value[key], expected[key], f'{place}.{key}')
    elif isinstance(value, list) and isinstance(expected, list):
        if len(value) != len(expected):
            yield f'{place}: {len(value)} entries, expected {len(expected)}'
        for index, (entry, expected_entry) in enumerate(zip(value, expected, strict=False)):
            name = entry.get('name', index) if isinstance(entry, dict) else index
            yield from _differing(entry, expected_entry, f'{place}[{name}]')
    elif value != expected and (value == value or expected == expected):  # NaN on both sides is equal
        yield f'{place}: {value!r}, expected {expected!r}'


def compare_node_lists(nodes: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> list[Check]:
    """Compare two node lists; return a check of nodes and one of initializers."""
    if not isinstance(expected, dict):
        raise UsageError(f'{source}: is not a node list; expected an object with nodes and initializers')
    checks, parts = [], dict(nodes=('meta', 'inputs', 'outputs', 'nodes'), initializers=('initializers',))
    for title, keys in parts.items():
        wrong = [line for key in keys for line in _differing(nodes.get(key), expected.get(key), key)]
        size = len(nodes.get(keys[-1], ()))
        detail = f'{size} {title}' + (' with name, shape and SHA-256' if title == 'initializers' else '')
        checks.append(Check(f'{title} equal {source}', not wrong, first_lines(wrong) or detail))
    return checks


def check_portable(model: onnx.ModelProto) -> list[Check]:
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ('', 'ai.onnx')})
    opsets = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    detail = f'{", ".join(foreign)} are not' if foreign else f'opset {opsets.get("ai.onnx")}'
    standard = Check('standard operators only', not foreign, detail)
    return [check_valid(model), check_inference(model), standard, check_not_random(model)]


def weight_ranges_check(detector: Detector, traced: SparseGraph, ranges: Ranges) -> Check:
    """Check that all ranges come from folded or unfolded kernels, or the checkpoint."""
    unfolded = {node.module: node.weight for node in traced.convolutions()}
    in_checkpoint, wrong = deploy.checkpoint_ranges(detector), []
    for node in fold(traced, 'fp32').convolutions():
        kernels = node.weight, unfolded.get(node.module, node.weight)
        candidates = [np.asarray(weight_amax(kernel), np.float32) for kernel in kernels]
        if in_checkpoint:
            candidates.append(np.asarray(in_checkpoint.weight_amax(node.name), np.float32))
        rounded = [amax.astype(np.float16).astype(np.float32) for amax in candidates]
        recorded = ranges.weight_amax(node.name)
        if not any(np.array_equal(recorded, amax) for amax in (*candidates, *rounded)):
            largest, expected = float(recorded.max()), float(candidates[0].max())
            wrong.append(f'{node.name}: {largest:.6g}, expected {expected:.6g} at most')
    return Check('ranges of the weights as computed from the weights', not wrong, '; '.join(wrong)[:300])


def metadata_check(file: SparseFile) -> Check:
    props = deploy.metadata_props(file.detector, file.export_options)
    facts = {name: read_fact(file.model, file.path, name) for name in ('form', 'voxels')}
    expected = {name: read_entry(props, name, file.path) for name in facts}
    wrong = [f'{name}: the file says {fact}' for name, fact in facts.items() if fact != expected[name]]
    if file.export_options.int8_fp16_io and file.export_options.precision != 'int8':
        wrong.append('options: int8_fp16_io requires precision int8')
    return Check(f'form and voxels {AS_IN_CONFIG}', not wrong, '; '.join(wrong)[:300])


DRAWN_VOXELS = 500
"""Fewest voxels of an input in the report."""
MAX_DRAWN = 16
"""Most inputs in the report."""
EXACT_RTOL = 1e-4
"""Tolerance of float32, relative to the largest reference value."""
HALF_RTOL = 5e-3
"""Tolerance of the file's fp16 weights, likewise relative."""
Layer = tuple[str, str, np.ndarray, np.ndarray | None]
"""Name and module path of a convolution, sites (M, 4) in the file's order, values (M, C) or None."""


def ask(detector: Detector, paths: Sequence[str], chosen: ChosenSamples) -> None:
    raise UsageError(f'{detector.family.name}: a backbone has no results to record')


def prove(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove one 'libspconv' or 'portable' file on synthetic and real voxels."""
    proof = check_backbone(detector, paths, samples, engine, claims)
    results, of_encoder = proof.results, detector.settings
    sets = [*proof_sets(of_encoder.spatial_shape, of_encoder.in_channels), *samples]
    subject = attempt(lambda: Backbone(proof.files[0], sets, int(proof.engine.get('threads', 0))))
    if isinstance(subject, Exception):
        results.reasons.append(f'ONNX Runtime cannot run the file: {one_line(subject)[:300]}')
        return finish(proof)
    clock = compare_samples(proof, subject)
    if claims.timed:
        medians = clock.medians('reference', 'file').values()
        proof.verdict.timing_ms = dict(
            zip(('spconv, one thread', subject.runner.timed), medians, strict=False)
        )
    if not results.reasons:
        results.reasons += total_reasons(results.cases, proof.verdict.bars)
    proof.verdict.pairs = subject.pairs[::-1][:MAX_DRAWN]
    return finish(proof)


class Backbone(Subject):
    """The unpatched encoder on spconv, which cannot run in float64, and its file."""

    all_outputs = 'dense map'

    def __init__(self, file: SparseFile, sets: Sequence[VoxelSet], threads: int) -> None:
        self.file, self.given, self.pairs = file, sets, []
        is_dialect = file.export_options.target == 'libspconv'
        self.runner = (DialectRunner if is_dialect else PortableRunner)(file, threads)
        self.rtol = self.runner.rtol

    def sample(self, entry: VoxelSet, index: int, mode: str) -> Sample:
        return Sample(entry.name, entry, 'x'.join(map(str, entry.features.shape)), entry.traced)

    def want(self, sample: Sample, state: Any) -> Step:
        """Run the model on spconv, on one thread, and keep the outputs of its layers."""
        family, model = self.file.detector.family, self.file.detector.model
        with watched_layers(family.encoder(model), layer_sources(self.file.traced)) as layers:
            dense = family.run_encoder(model, sample.data.features, sample.data.coordinates)
        return Step({'dense map': dense}, facts=layers)

    def got(self, sample: Sample, state: Any) -> Step:
        coordinates = in_order(sample.data.coordinates, self.file.same_order)
        return Step({'dense map': self.runner.run(sample.data.features, coordinates)})

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        """Add rows on the layers, site by site."""
        coordinates, rows = in_order(sample.data.coordinates, self.file.same_order), []
        for layer in self.runner.layers(coordinates) if len(coordinates) else ():
            rows += layer_rows(want.facts, layer, self.file.same_order, self.rtol)
        more = self.runner.more_rows(want.tensors['dense map'])
        return want, dataclasses.replace(got, rows=more), rows

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        voxels = len(sample.data.features)
        if voxels >= DRAWN_VOXELS and not isinstance(got, Exception):
            maps = (step.tensors['dense map'][0] for step in (want, got))
            self.pairs.append(Pair(f'{sample.name}, {voxels} voxels', None, *maps, self.runner.title))
        return case


def check_backbone(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Proof:
    """Read the file, make its expected graphs, check it."""
    file = read_sparse_file(detector, paths[0], claims.settings.get('ranges'))
    options = file.export_options
    facts = dict(
        file_sha256=sha256_onnx(file.path),
        form=options.target,
        options=dict(options.to_json(), cfg_options=detector.cfg_options),
        order=options.order,
        precision=file.precision,
        grid='x'.join(map(str, file.expected.spatial_shape)),
        output='x'.join(map(str, file.expected.output_shape)),
    )
    checks, notes = [], []
    if options.target == 'libspconv':
        checks, notes = check_dialect(file.path, file.model, claims.settings.get('max_voxels'))
    else:
        checks = check_portable(file.model)
    if has_precision(options):
        notes.append(
            f'layers are compared in float32; to measure the effect of int8, use {tool("calibrate")}'
        )
    overrides = file.options.get('cfg_options') or {}
    checks += [
        settings_check(detector.unbuilt_cfg or detector.cfg, overrides),
        metadata_check(file),
        *([] if file.ranges is None else [file.ranges]),
    ]
    if node_list := claims.settings.get('node_list'):
        expected, name = read_json(node_list), Path(node_list).name
        checks += compare_node_lists(to_node_list(file.model), expected, name)
    rule, settings = read_fact(file.model, file.path, 'voxels'), detector.settings
    layer = detector.family.voxel_layer(detector.model)
    return check(
        detector,
        [file],
        options,
        engine,
        claims,
        facts,
        level_1=lambda file: (checks, notes, functools.partial(compare_graph, file)),
        prepared=lambda: compare_voxels(layer, settings.order, settings.in_channels, rule.to_json()),
    )


@dataclasses.dataclass
class LayerOutput:
    """The output of one folded convolution in the model.

    Attributes:
        coordinates: (M, 4) int32: sample, then the axes in the module's order.
        features: (M, C) float32.
    """

    coordinates: np.ndarray
    features: np.ndarray


@contextlib.contextmanager
def watched_layers(
    encoder: torch.nn.Module, sources: dict[str, LayerSource]
) -> Iterator[dict[str, LayerOutput]]:
    """Yield a dict, path of a convolution -> output, filled by a forward pass."""
    outputs: dict[str, LayerOutput] = {}

    def values(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy().copy()  # an in-place ReLU may follow

    def on_convolution(path: str, _module: object, _args: object, result: Any) -> None:
        coordinates = result.indices.detach().cpu().numpy().astype(np.int32)
        outputs[path] = LayerOutput(coordinates, values(result.features))

    def on_norm(path: str, _module: object, _args: object, result: torch.Tensor) -> None:
        outputs[path].features = values(result)

    with contextlib.ExitStack() as hooks:
        for path, source in sources.items():
            for name, hook in ((path, on_convolution), (source.norm, on_norm)):
                if name:
                    module = encoder.get_submodule(name)
                    hooks.enter_context(module.register_forward_hook(functools.partial(hook, path)))
        yield outputs
        for path, output in outputs.items():
            if sources[path].relu:
                np.maximum(output.features, 0, out=output.features)


class DialectRunner:
    """A libspconv file, interpreted in numpy: the engine itself needs a GPU.

    Attributes:
        graph, plan: of the file.
        title: name of the engine in pictures.
        timed: name of the engine in the table of times.
        rtol: tolerance, relative to the largest reference value.
    """

    title, timed = 'the file, interpreted', 'numpy interpreter'
    rtol = HALF_RTOL

    def __init__(self, file: SparseFile, threads: int) -> None:
        self.file = file
        self.graph = read(file.path)
        self.plan = plan_of(self.graph)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        self.voxels = features, coordinates
        self.layer_values: dict[str, np.ndarray] = {}
        self.rulebook = build(self.plan, coordinates)
        keep = self.layer_values.__setitem__
        return engine.run(self.graph, coordinates, features, keep, rulebook=self.rulebook)

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer of the last run, which had `coordinates`."""
        expected = self.file.expected.convolutions()
        for node, model_node in zip(self.graph.convolutions(), expected, strict=True):
            sites = self.rulebook.level(node.output).coordinates
            yield node.name, model_node.module, sites, self.layer_values[node.name]

    def more_rows(self, expected: np.ndarray) -> list[TensorRow]:
        """Compare the dense map with float32 weights, for the last run."""
        features, coordinates = self.voxels
        name, exact = 'dense map, weights before rounding', self.file.exact
        dense = engine.run(exact, coordinates, features)
        return compare_named({name: expected}, {name: dense}, EXACT_RTOL, 'scn')


class PortableRunner:
    """A portable file on ONNX Runtime.

    `layer_engine` also has the convolutions' outputs. These prevent fusion, so the dense map comes from the
    first session.
    """

    title, timed = 'ONNX Runtime', 'rulebook and ONNX Runtime'
    rtol = EXACT_RTOL

    def __init__(self, file: SparseFile, threads: int) -> None:
        self.file = file
        self.engine = ScnOnnx(file.path, threads=threads)
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        names = {name for node in model.graph.node for name in node.output}
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(f'{node.name}.out', onnx.TensorProto.FLOAT, None)
            for node in file.expected.convolutions()
            if f'{node.name}.out' in names
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'layers.onnx'
            path.write_bytes(model.SerializeToString())
            self.layer_engine = ScnOnnx(path, threads=self.engine.threads)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        self.features = features
        return self.engine.step(voxels=(features, coordinates))

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer of the last run, without the last row (zeros) of the form 'buckets'."""
        outputs = self.layer_engine.session.run(self.engine.feeds(self.features, coordinates))
        level_of, levels = self.engine.plan.level_of, build(self.engine.plan, coordinates).levels
        for node in self.file.expected.convolutions():
            values = outputs.get(f'{node.name}.out')
            if values is None or node.output not in level_of:
                yield node.name, node.module, coordinates, None
                continue
            values = values[:-1] if self.engine.form == 'buckets' else values
            yield node.name, node.module, levels[level_of[node.output]].coordinates, values

    def more_rows(self, expected: np.ndarray) -> list[TensorRow]:
        """[], since every row has float32's tolerance."""
        return []


def layer_rows(
    outputs: Mapping[str, LayerOutput], layer: Layer, same_order: bool, rtol: float
) -> list[TensorRow]:
    """Compare a layer site by site, in any order of sites."""
    node, module, sites, features = layer
    name, expected = f'{node} {module}', outputs.get(module)
    if features is None:
        return [failed_row(name, 'the file has no such layer')]
    if expected is None:
        return [failed_row(name, 'missing in the reference, where this convolution did not run')]
    sites = in_order(sites, same_order)
    expected_order, order = (np.lexsort(array.T[::-1]) for array in (expected.coordinates, sites))
    if not np.array_equal(expected.coordinates[expected_order], sites[order]):
        unpaired = len({*map(tuple, expected.coordinates.tolist())} ^ {*map(tuple, sites.tolist())})
        reason = (
            f'active sites: {len(sites)}, expected {len(expected_order)}; {unpaired} are on one side only'
        )
        return [failed_row(name, reason, expected.features)]
    if len(features) != len(sites):
        return [failed_row(name, f'{len(features)} rows, expected {len(sites)}', expected.features)]
    sides = {name: expected.features[expected_order]}, {name: features[order]}
    return compare_named(*sides, rtol, 'scn')
