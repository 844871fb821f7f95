"""The proof of a sparse backbone's file: structure, then every layer and the dense map against spconv."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors, failed_row
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.core.cli import one_line, stderr
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.proof.inputs.voxel_sets import proof_sets
from mmdeploy_ext.proof.levels import sparse_structure
from mmdeploy_ext.proof.levels.sparse_subject import Subject, check_file, subject_of
from mmdeploy_ext.proof.portable_layers import PortableLayers
from mmdeploy_ext.proof.spconv_layers import LayerOutput, layer_sources, watched
from mmdeploy_ext.proof.tasks.bev import BevPair
from mmdeploy_ext.proof.verdict import Case, Verdict
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.libspconv import read, to_node_list
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.deploy.sparse import SparseDeployment
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ranges import Ranges

EXACT_RTOL = 1e-4
"""Of the largest reference value: float32 against float32."""
HALF_RTOL = 5e-3
"""The same for the file's fp16 weights against the model's float32 ones."""
DRAWN_VOXELS = 500
"""Smaller inputs give no picture worth looking at."""


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
    subject = subject_of(deployment, path, ranges)
    verdict = check_file(subject, max_voxels, edited)
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
        dense = family.run_encoder(model, voxels.features, voxels.coordinates)
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
        from mmdeploy_ext.runtime.scn.model import ScnOnnx

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
