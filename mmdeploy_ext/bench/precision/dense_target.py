"""The float file to quantise and its INT8 file, alone or as one graph of a folder."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import EngineError, InferenceError, ModelFileError, UsageError, one_line
from mmdeploy_ext.base.files import check_replaceable, check_writable, replaced_folder
from mmdeploy_ext.bench.precision.calibration_sets import IMAGE_INPUT, quantised_graph
from mmdeploy_ext.bench.precision.damage import Difference
from mmdeploy_ext.engines.openvino import compiled, readable, require_openvino
from mmdeploy_ext.exporting.int8 import tracked
from mmdeploy_ext.exporting.int8.dense import INFERRED_KEY, DenseGraph, is_quantised
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import openable
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.runtime.exported import files_of_family
from mmdeploy_ext.spec.metadata import read_metadata

# INT8 for dense graphs by NNCF, for OpenVINO: NNCF chooses ranges, bias correction and Q/DQ places.
#
# ONNX Runtime runs the file, but fuses less.


MOVES = (
    'Cast', 'Concat', 'Expand', 'Flatten', 'Gather', 'Identity', 'MaxPool', 'Pad', 'Relu', 'Reshape',
    'Resize', 'Shape', 'Slice', 'Split', 'Squeeze', 'Tile', 'Transpose', 'Unsqueeze',
)  # fmt: skip
"""Operators that NNCF quantises only if their input is; ignoring them stops it."""


class NncfQuantiser:
    """Quantises layers of a float model with NNCF, like `dense.DenseQuantiser`.

    Each call of `network` runs all batches: NNCF's ranges depend on the layers.
    """

    def __init__(self, graph: DenseGraph, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self.graph, self._nncf, self._batches = graph, require_nncf(), _TrackedBatches(batches)

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The whole network with these layers in INT8, and later operators with only INT8 inputs."""
        model = copy.deepcopy(self.graph.network)
        if not layers:
            return model
        nncf = self._nncf
        input_names = [value.name for value in model.graph.input]
        dataset = nncf.Dataset(self._batches, lambda batch: {name: batch[name] for name in input_names})
        # NNCF would quantise every operator that its CPU back end has codes for, coordinates among them: the
        # toy RT-DETR, with sampling points by sums and products, fell from 0.569 to 0.192 box AP
        int8_nodes = set(self.graph.int8_nodes(layers))
        float_nodes = [
            node.name
            for node in model.graph.node
            if node.op_type not in MOVES and node.name not in int8_nodes
        ]
        try:
            with suppress_output():
                quantised = nncf.quantize(
                    model,
                    dataset,
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=max(len(self._batches), 1),
                    ignored_scope=nncf.IgnoredScope(names=float_nodes),
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise InferenceError(f'NNCF {nncf.__version__} failed: {error}') from error
        for entry in [entry for entry in quantised.metadata_props if entry.key == INFERRED_KEY]:
            quantised.metadata_props.remove(entry)
        return quantised


def require_nncf() -> ModuleType:
    """Import NNCF without telemetry; EngineError: it is not installed."""
    os.environ.setdefault('NNCF_CI', '1')  # disables its telemetry
    try:
        with suppress_output():
            import nncf
    except ImportError as error:
        raise EngineError(
            f'NNCF is not installed ({error}); install it with: pip install openvino nncf'
        ) from error
    return nncf


class _TrackedBatches:
    def __init__(self, batches: Collection[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return tracked(self._batches, 'calibrating')


# The outputs of a network in INT8 against float32: the last layers before post-processing.


class OpenVinoRunner:
    """A network in OpenVINO with float32 and INT8, like `graphs.run.Runner`."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], threads: int) -> None:
        require_openvino('openvino nncf')
        try:
            with openable(readable(model)) as source:
                self._compiled = compiled(source, threads)
        except RuntimeError as error:
            text = one_line(error)
            raise ModelFileError(f'OpenVINO cannot compile the network: {text}') from error
        self._names = list(names)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            outputs = self._compiled(dict(feeds))
        except RuntimeError as error:
            raise InferenceError(f'OpenVINO failed to run the network: {error}') from error
        return {name: np.array(outputs[name]) for name in self._names}


def compare_outputs(
    graph: DenseGraph,
    network: onnx.ModelProto,
    batches: Iterable[Mapping[str, np.ndarray]],
    threads: int = 0,
    engine: str = 'onnxruntime',
) -> dict[str, Difference]:
    """Differences of an INT8 network's outputs from float32, by layer of `DenseGraph.compared`.

    `engine`: 'onnxruntime' or 'openvino'; `threads`: 0: it decides. InferenceError: non-finite output.
    """
    input_names = [value.name for value in graph.network.graph.input]
    tensors_of_layer = {name: graph.layer(name).outputs for name in graph.compared}
    names = [name for tensors in tensors_of_layer.values() for name in tensors]
    differences = {name: Difference() for name in tensors_of_layer}

    def runner(model: onnx.ModelProto) -> Runner | OpenVinoRunner:
        if engine == 'openvino':
            return OpenVinoRunner(model, names, threads)
        return Runner(model, names, optimization='all', threads=threads)

    float32, int8 = runner(graph.network), runner(network)
    for batch in batches:
        feeds = {name: batch[name] for name in input_names}
        references, outputs = float32.run(feeds), int8.run(feeds)
        for name, tensors in tensors_of_layer.items():
            if not all(np.isfinite(references[tensor]).all() for tensor in tensors):
                raise InferenceError(
                    f'{name}: has values that are not finite on the images of --calibrate, in float32 '
                    'already; check the checkpoint and the images'
                )
            for tensor in tensors:
                differences[name].add(references[tensor], outputs[tensor])
    return differences


SUFFIX = '.int8'


@dataclasses.dataclass(frozen=True)
class Target:
    """A float file and its INT8 file.

    Attributes:
        beside: other files of the folder, copied unchanged.
        is_folder: the user named a folder; `model` is one graph in it.
    """

    model: Path
    output: Path
    beside: tuple[Path, ...] = ()
    is_folder: bool = False

    @property
    def shown(self) -> str:
        return str(self.output.parent if self.is_folder else self.output)

    def save(self, model: onnx.ModelProto) -> None:
        """Write the INT8 file; a complete folder replaces an older one, keeping unrelated files."""
        if not self.is_folder:
            files.save(model, self.output, inputs=[self.model])
            return
        folder, family = self.output.parent, read_metadata(str(self.model)).family
        with replaced_folder(folder, files_of_family(folder, family)) as staging:
            files.save(model, staging / self.output.name, inputs=[self.model])
            for path in self.beside:
                shutil.copy(path, staging)


def find_target(model: str, output: str | None) -> Target:
    """Writable target of a file or folder; the default output is next to it, named `.int8`.

    ModelFileError: a folder without one graph to quantise.
    """
    source = Path(model)
    if not source.is_dir():
        target = Target(source, Path(output) if output else source.with_suffix(f'{SUFFIX}.onnx'))
        files.check_targets([target.output], [source])
        return target
    named = source if source.name not in ('', '..') else source.resolve()
    folder = Path(output) if output else named.with_name(f'{source.resolve().name}{SUFFIX}')
    if folder.suffix == '.onnx' or folder.is_file():
        raise UsageError(f'--out {folder}: is a file; {model} is a folder of graphs, so name a folder')
    if folder.resolve() == source.resolve():
        raise UsageError(f'--out {folder}: is the input, which is never overwritten; choose another name')
    graph = find_graph(source)
    graph_files = (graph.name, f'{graph.name}.data')
    beside = [path for path in sorted(source.iterdir()) if path.is_file() and path.name not in graph_files]
    check_replaceable(folder)
    check_writable(folder / graph.name)
    return Target(graph, folder / graph.name, tuple(beside), is_folder=True)


def find_graph(source: Path) -> Path:
    """The file, or a folder's only graph, that can be quantised; ModelFileError: none or several."""
    if not source.is_dir():
        return source
    paths = sorted(source.glob('*.onnx'))
    metadata_of = {path: read_metadata(str(path)) for path in paths}
    graphs = [
        path for path, metadata in metadata_of.items() if metadata.form == quantised_graph(metadata.family)
    ]
    if not graphs:
        graphs = [
            path for path, metadata in metadata_of.items() if metadata.spec.input_names == [IMAGE_INPUT]
        ]
    if len(graphs) != 1 or (len(paths) == 1 and not quantised_graph(metadata_of[paths[0]].family)):
        names = ', '.join(path.name for path in paths) or 'no .onnx file'
        raise ModelFileError(
            f'{source}: has {names}; expected a folder with the image backbone (its only input is '
            f'{IMAGE_INPUT!r}) or the dense graph of a LiDAR model'
        )
    return graphs[0]


def refuse_stale(path: str | os.PathLike[str], reason: str) -> None:
    """Raise ModelFileError for an INT8 file that `test.py` would overwrite in float32."""
    if is_quantised(files.load(path)):
        raise ModelFileError(
            f'{path}: is an INT8 file and {reason}; it is not overwritten by a float32 export: write it '
            f'again with {tool("quantize")} from a fresh export'
        )
