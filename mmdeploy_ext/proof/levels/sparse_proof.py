"""The proof of a sparse backbone's file: structure, then every layer and the dense map against spconv."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors, failed_row
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.files import read_json, sha256_file
from mmdeploy_ext.deploy.sparse import has_precision
from mmdeploy_ext.proof.inputs.voxel_sets import proof_sets
from mmdeploy_ext.proof.levels import sparse_structure
from mmdeploy_ext.proof.levels.base import Proof
from mmdeploy_ext.proof.levels.run_twice import attempt
from mmdeploy_ext.proof.levels.sparse_subject import (
    Subject,
    compare_graph,
    precision_of,
    says_check,
    subject_of,
)
from mmdeploy_ext.proof.portable_layers import PortableLayers
from mmdeploy_ext.proof.provenance import settings_check
from mmdeploy_ext.proof.results import Case, Check
from mmdeploy_ext.proof.spconv_layers import LayerOutput, layer_sources, watched
from mmdeploy_ext.proof.tasks.bev import BevPair
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.libspconv import read, to_node_list
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proof.levels.graph_result import GraphResult
    from mmdeploy_ext.sparse.ranges import Ranges

EXACT_RTOL = 1e-4
"""Of the largest reference value: float32 against float32."""
HALF_RTOL = 5e-3
"""The same for the file's fp16 weights against the model's float32 ones."""
DRAWN_VOXELS = 500
"""Smaller inputs give no picture worth looking at."""


class SparseProof(Proof):
    """A proof of one file, of either target.

    Its samples are real voxels besides the synthetic ones, coordinates in the model's own order. Of the
    engine's options it takes `threads`.
    """

    by_rate = False
    most_pictures = 16

    def __init__(
        self,
        *given: Any,
        ranges: Ranges | None = None,
        max_voxels: int | None = None,
        node_list: str = '',
    ) -> None:
        """Read the file.

        Args:
            given: see `Proof`.
            ranges: that it was exported with, where it has any.
            max_voxels: see `contract.check`.
            node_list: stored node list of the reference exporter that it has to equal, a JSON file.
        """
        self.ranges, self.max_voxels, self.node_list = ranges, max_voxels, node_list
        super().__init__(*given)

    @property
    def subject(self) -> Subject:
        """The file, and what it has to be."""
        return self.files[0]

    def read(self, path: str) -> Subject:
        """See `Proof.read`."""
        return subject_of(self.deployment, path, self.ranges)

    def facts(self) -> dict[str, Any]:
        """See `Proof.facts`."""
        subject, options = self.subject, self.subject.asked_for
        return dict(
            file_sha256=sha256_file(subject.path),
            form=options.target,
            options=dict(options.to_json(), cfg_options=self.deployment.cfg_options),
            order=options.order,
            precision=precision_of(subject.model, options),
            grid='x'.join(map(str, subject.expected.spatial_shape)),
            output='x'.join(map(str, subject.expected.output_shape)),
        )

    def graph(self, file: Subject) -> GraphResult:
        """See `Proof.graph`."""
        return compare_graph(file)

    def checks(self, file: Subject) -> list[Check]:
        """See `Proof.checks`."""
        if file.asked_for.target == 'libspconv':
            checks, notes = sparse_structure.check_dialect(file.path, file.model, self.max_voxels)
            self.verdict.notes += notes
        else:
            checks = sparse_structure.check_portable(file.model)
        if has_precision(file.asked_for):
            self.verdict.notes.append(
                'layers are compared in float32: what int8 does to the values is measured by '
                'tools/quantization/scn_ptq.py'
            )
        overrides = file.options.get('cfg_options') or {}
        checks += [settings_check(self.deployment.cfg, overrides), says_check(file)]
        checks += [file.ranges] * (file.ranges is not None)
        if self.node_list:
            wanted, name = read_json(self.node_list), Path(self.node_list).name
            checks += sparse_structure.compare_node_lists(to_node_list(file.model), wanted, name)
        return checks

    def start(self, stack: contextlib.ExitStack) -> None:
        """See `Proof.start`; a file that cannot be run is a reason, and nothing is."""
        self.candidate, self.milliseconds = None, {}
        kind = _Dialect if self.subject.asked_for.target == 'libspconv' else _Portable
        found = attempt(lambda: kind(self.subject, int(self.engine.get('threads', 0))))
        if isinstance(found, Exception):
            self.verdict.reasons.append(f'the file cannot be run: {one_line(found)[:300]}')
        else:
            self.candidate = found

    def inputs(self) -> list[VoxelSet]:
        """See `Proof.inputs`."""
        settings = self.deployment.settings
        sets = [*proof_sets(settings.spatial_shape, settings.in_channels), *self.samples]
        return sets if self.candidate else []

    def cases(self, one: VoxelSet) -> tuple[list[Case], list[BevPair]]:
        """See `Proof.cases`: every layer and the dense map."""
        reference = run_reference(self.subject, one)
        coordinates = one.in_order(self.subject.same_order)
        start = time.perf_counter()
        rows = dense = attempt(lambda: self.candidate.run(one.features, coordinates))
        milliseconds = (time.perf_counter() - start) * 1e3
        if not isinstance(dense, Exception):
            rows = attempt(lambda: self._rows(reference, dense, coordinates))
        if isinstance(rows, Exception):
            reason = f'the {self.candidate.what_failed}: {one_line(rows)[:200]}'
            return [_case(one, [failed_row('dense map', reason, reference.dense)])], []
        if len(one.features) < DRAWN_VOXELS:
            return [_case(one, rows)], []
        pair = BevPair(_title(one), reference.dense[0], dense[0], self.candidate.title)
        self.milliseconds = {'spconv, one thread': reference.milliseconds, self.candidate.timed: milliseconds}
        return [_case(one, rows)], [pair]

    def _rows(self, reference: Reference, dense: np.ndarray, coordinates: np.ndarray) -> list[TensorRow]:
        rows = self.candidate.layer_rows(reference, coordinates) if len(coordinates) else []
        rows += compare({'dense map': reference.dense}, {'dense map': dense}, self.candidate.rtol)
        return rows + self.candidate.more_rows(reference)

    def timing(self) -> dict[str, float]:
        """See `Proof.timing`: of the last input that is worth it."""
        return self.milliseconds

    def conclude(self) -> None:
        """See `Proof.conclude`; the last input is the first to look at."""
        self.pictures.reverse()
        super().conclude()


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

    title, timed, what_failed = 'the file, interpreted', 'numpy interpreter', 'graph cannot be run'
    rtol = HALF_RTOL

    def __init__(self, subject: Subject, threads: int) -> None:
        self.subject = subject
        self.graph = read(subject.path)
        self.plan = plan_of(self.graph)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Return the dense map; the layers are kept."""
        self.given, self.found = (features, coordinates), {}
        self.rulebook = build(self.plan, coordinates)
        keep = self.found.__setitem__
        return engine.run(self.graph, coordinates, features, keep, rulebook=self.rulebook)

    def layer_rows(self, reference: Reference, coordinates: np.ndarray) -> list[TensorRow]:
        """Compare every layer."""
        rows = []
        for node, wanted in zip(self.graph.convolutions(), self.subject.expected.convolutions(), strict=True):
            name, expected = f'{node.name} {wanted.module}', reference.layers.get(wanted.module)
            sites = _in_own_order(self.subject, self.rulebook.level(node.output).coordinates)
            rows.extend(layer_rows(name, expected, sites, self.found[node.name], HALF_RTOL))
        return rows

    def more_rows(self, reference: Reference) -> list[TensorRow]:
        """Compare what the file would give with its weights in float32."""
        features, coordinates = self.given
        name, exact = 'dense map, weights before rounding', self.subject.exact
        return compare({name: reference.dense}, {name: engine.run(exact, coordinates, features)}, EXACT_RTOL)


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

    title, timed, what_failed = 'ONNX Runtime', 'rulebook and ONNX Runtime', 'engine failed'
    rtol = EXACT_RTOL

    def __init__(self, subject: Subject, threads: int) -> None:
        from mmdeploy_ext.runtime.scn.model import ScnOnnx

        self.subject = subject
        self.engine = ScnOnnx(subject.path, threads=threads)
        nodes = [node.name for node in subject.expected.convolutions()]
        self.layers = PortableLayers(subject.model, nodes, self.engine.threads)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Return the dense map."""
        self.features = features
        return self.engine.step(voxels=(features, coordinates))

    def layer_rows(self, reference: Reference, coordinates: np.ndarray) -> list[TensorRow]:
        """Compare every layer."""
        found = self.layers.run(self.engine.feeds(self.features, coordinates))
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

    def more_rows(self, reference: Reference) -> list[TensorRow]:
        """Compare nothing else: the file has the weights in float32."""
        return []


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
