"""Levels 2 of a sparse backbone: what runs its file, and every layer and the dense map against spconv."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors, failed_row
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.proof.spconv_layers import LayerOutput, layer_sources, watched
from mmdeploy_ext.runtime.scn.model import ScnOnnx
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.libspconv import read
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proof.levels.sparse_subject import Subject

EXACT_RTOL = 1e-4
"""Of the largest reference value: float32 against float32."""
HALF_RTOL = 5e-3
"""The same for the file's fp16 weights against the model's float32 ones."""


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


class DialectFile:
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


def layer_tensor(node: str) -> str:
    """Return the name of a node's output in a portable file."""
    return f'{node}.out'


class PortableLayers:
    """A second session, of the file with the outputs of its convolutions as outputs of the graph.

    The first one stays as it is: what is shown cannot be fused, so the two may differ in last bits.
    """

    def __init__(self, model: onnx.ModelProto, nodes: list[str], threads: int) -> None:
        """Open the session.

        Args:
            model: the file's content.
            nodes: names of convolutions; those that the file lacks give nothing.
            threads: of ONNX Runtime.
        """
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        there = {name for node in model.graph.node for name in node.output}
        self.nodes = [node for node in nodes if layer_tensor(node) in there]
        shown.graph.output.extend(
            onnx.helper.make_tensor_value_info(layer_tensor(node), onnx.TensorProto.FLOAT, None)
            for node in self.nodes
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'layers.onnx'
            path.write_bytes(shown.SerializeToString())
            self.engine = ScnOnnx(path, threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return convolution's name -> (M, C), or (M + 1, C) with its row of zeros (`sparse.portable`)."""
        found = self.engine.session.run(feeds)
        return {node: found[layer_tensor(node)] for node in self.nodes}


class PortableFile:
    """A portable file on ONNX Runtime."""

    title, timed, what_failed = 'ONNX Runtime', 'rulebook and ONNX Runtime', 'engine failed'
    rtol = EXACT_RTOL

    def __init__(self, subject: Subject, threads: int) -> None:
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
