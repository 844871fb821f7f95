"""The outputs of a network in INT8 against float32: the last layers before post-processing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import InferenceError, ModelFileError, one_line
from mmdeploy_ext.bench.precision.difference import Difference
from mmdeploy_ext.engines.openvino import compiled, readable, require_openvino
from mmdeploy_ext.graphs.io.files import openable
from mmdeploy_ext.graphs.run import Runner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.exporting.int8.dense_layers import DenseGraph


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
