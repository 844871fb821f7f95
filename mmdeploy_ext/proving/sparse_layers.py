"""Every layer and the dense map of a sparse backbone's file against spconv."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.exporting.sparse.libspconv import read
from mmdeploy_ext.exporting.sparse.trace import LayerSource, layer_sources
from mmdeploy_ext.proving.inputs.voxel_sets import in_order
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.comparison import compare_named, failed_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.sparse_file import SparseFile
    from mmdeploy_ext.spec.results import TensorRow

EXACT_RTOL = 1e-4
"""Tolerance of float32, relative to the largest reference value."""
HALF_RTOL = 5e-3
"""Tolerance of the file's fp16 weights, likewise relative."""
Layer = tuple[str, str, np.ndarray, np.ndarray | None]
"""Name and module path of a convolution, sites (M, 4) in the file's order, values (M, C) or None."""


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


@dataclasses.dataclass
class SparseReference:
    """spconv's dense map (1, C, H, W), outputs of convolutions by path, and ms."""

    dense: np.ndarray
    layers: dict[str, LayerOutput]
    milliseconds: float


def run_reference(file: SparseFile, voxels: VoxelSet) -> SparseReference:
    """Run the unpatched model on spconv, on one thread."""
    family, model = file.detector.family, file.detector.model
    with watched_layers(family.encoder(model), layer_sources(file.traced)) as layers:
        start = time.perf_counter()
        dense = family.run_encoder(model, voxels.features, voxels.coordinates)
        milliseconds = (time.perf_counter() - start) * 1e3
    return SparseReference(dense, layers, milliseconds)


class DialectRunner:
    """A libspconv file, interpreted in numpy: the engine itself needs a GPU.

    Attributes:
        graph, plan: of the file.
        title: name of the engine in pictures.
        timed: name of the engine in the table of times.
        failure: start of the reason if a run raises.
        rtol: tolerance, relative to the largest reference value.
    """

    title, timed, failure = 'the file, interpreted', 'numpy interpreter', 'the graph does not run'
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

    def more_rows(self, reference: SparseReference) -> list[TensorRow]:
        """Compare the dense map with float32 weights, for the last run."""
        features, coordinates = self.voxels
        name, exact = 'dense map, weights before rounding', self.file.exact
        dense = engine.run(exact, coordinates, features)
        return compare_named({name: reference.dense}, {name: dense}, EXACT_RTOL, 'scn')


class PortableRunner:
    """A portable file on ONNX Runtime.

    `layer_engine` also has the convolutions' outputs. These prevent fusion, so the dense map comes from the
    first session.
    """

    title, timed, failure = 'ONNX Runtime', 'rulebook and ONNX Runtime', 'engine failed'
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

    def more_rows(self, reference: SparseReference) -> list[TensorRow]:
        """[], since every row has float32's tolerance."""
        return []


def layer_rows(reference: SparseReference, layer: Layer, same_order: bool, rtol: float) -> list[TensorRow]:
    """Compare a layer site by site, in any order of sites."""
    node, module, sites, features = layer
    name, expected = f'{node} {module}', reference.layers.get(module)
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
