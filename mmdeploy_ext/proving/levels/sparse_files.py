"""Levels 2 of a sparse backbone: what runs its file, and every layer and the dense map against spconv."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mmdeploy_ext.families.parts.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.proving.inputs.voxel_sets import in_order
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.spconv_layers import LayerOutput, layer_sources, watched
from mmdeploy_ext.proving.tensors import compare_named, failed_row
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.libspconv import read
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.levels.sparse_subject import Subject

EXACT_RTOL = 1e-4
"""Of the largest reference value: float32 against float32."""
HALF_RTOL = 5e-3
"""The same for the file's fp16 weights against the model's float32 ones."""
Layer = tuple[str, str, np.ndarray, np.ndarray | None]
"""Convolution's name in the file, its path in the module, sites (M, 4) in the file's order, values (M, C)."""


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

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer."""
        for node, wanted in zip(self.graph.convolutions(), self.subject.expected.convolutions(), strict=True):
            sites = self.rulebook.level(node.output).coordinates
            yield node.name, wanted.module, sites, self.found[node.name]

    def more_rows(self, reference: Reference) -> list[TensorRow]:
        """Compare what the file would give with its weights in float32."""
        features, coordinates = self.given
        name, exact = 'dense map, weights before rounding', self.subject.exact
        dense = engine.run(exact, coordinates, features)
        return compare_named({name: reference.dense}, {name: dense}, EXACT_RTOL, 'scn')


def layer_rows(reference: Reference, layer: Layer, same_order: bool, rtol: float) -> list[TensorRow]:
    """Compare one layer, site by site; the order of the rows is each engine's own."""
    node, module, sites, features = layer
    name, expected = f'{node} {module}', reference.layers.get(module)
    if features is None:
        return [failed_row(name, 'the file has no such layer')]
    if expected is None:
        return [failed_row(name, 'missing in the reference: its convolution did not run')]
    sites = in_order(sites, same_order)
    left, right = (np.lexsort(array.T[::-1]) for array in (expected.coordinates, sites))
    if not np.array_equal(expected.coordinates[left], sites[right]):
        only = len({*map(tuple, expected.coordinates.tolist())} ^ {*map(tuple, sites.tolist())})
        reason = f'active sites: {len(sites)}, expected {len(left)}; {only} are on one side only'
        return [failed_row(name, reason, expected.features)]
    if len(features) != len(sites):
        return [failed_row(name, f'{len(features)} rows, expected {len(sites)}', expected.features)]
    return compare_named({name: expected.features[left]}, {name: features[right]}, rtol, 'scn')


def with_layers(model: onnx.ModelProto, nodes: Iterable[str], threads: int) -> ScnOnnx:
    """Open a second session, of the file with those outputs of its convolutions that it has as its own, too.

    The first one stays as it is: what is shown cannot be fused, so the two may differ in last bits.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {name for node in model.graph.node for name in node.output}
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(f'{node}.out', onnx.TensorProto.FLOAT, None)
        for node in nodes
        if f'{node}.out' in there
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'layers.onnx'
        path.write_bytes(shown.SerializeToString())
        return ScnOnnx(path, threads=threads)


class PortableFile:
    """A portable file on ONNX Runtime."""

    title, timed, what_failed = 'ONNX Runtime', 'rulebook and ONNX Runtime', 'engine failed'
    rtol = EXACT_RTOL

    def __init__(self, subject: Subject, threads: int) -> None:
        self.subject = subject
        self.engine = ScnOnnx(subject.path, threads=threads)
        nodes = (node.name for node in subject.expected.convolutions())
        self.shown = with_layers(subject.model, nodes, self.engine.threads)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Return the dense map."""
        self.features = features
        return self.engine.step(voxels=(features, coordinates))

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer, without the row of zeros that it may have (`sparse.portable`)."""
        found = self.shown.session.run(self.engine.feeds(self.features, coordinates))
        known, levels = self.engine.plan.level_of, build(self.engine.plan, coordinates).levels
        for node in self.subject.expected.convolutions():
            values = found.get(f'{node.name}.out')
            if values is None or node.output not in known:
                yield node.name, node.module, coordinates, None
                continue
            values = values[:-1] if self.engine.form == 'buckets' else values
            yield node.name, node.module, levels[known[node.output]].coordinates, values

    def more_rows(self, reference: Reference) -> list[TensorRow]:
        """Compare nothing else: the file has the weights in float32."""
        return []
