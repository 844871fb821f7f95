"""The outputs of a network in INT8 against float32: the last layers before post-processing.

Errors are norms of the difference over the float32 norm; a network's is its worst output's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.engines.openvino import compiled, readable, require_openvino
from mmdeploy_ext.graph.io.files import openable
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.quantize.difference import Difference
from mmdeploy_ext.util.errors import DataError, InferenceError, ModelFileError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.quantize.dense_layers import DenseGraph


class OpenVinoRunner:
    """A network in OpenVINO with float32 and INT8, like `graph.run.Runner`."""

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


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Differences of a network's outputs from float32, `by_layer` of `DenseGraph.compared`."""

    by_layer: Mapping[str, Difference]

    @property
    def error(self) -> float:
        """Error of the worst output, or NaN."""
        return float(np.max([difference.error for difference in self.by_layer.values()]))

    @property
    def cosine(self) -> float:
        """Cosine of the worst output, or NaN."""
        return float(np.min([difference.cosine for difference in self.by_layer.values()]))

    def to_json(self) -> dict[str, Any]:
        return {name: difference.to_json() for name, difference in self.by_layer.items()}


class Probe:
    """The float network's outputs on a few batches, for comparisons.

    `engine`: 'onnxruntime' or 'openvino'; `threads`: 0: it decides. InferenceError: non-finite output.
    """

    def __init__(
        self,
        graph: DenseGraph,
        batches: Iterable[Mapping[str, np.ndarray]],
        threads: int = 0,
        engine: str = 'onnxruntime',
    ) -> None:
        input_names = [value.name for value in graph.network.graph.input]
        self._tensors_of_layer = {name: graph.layer(name).outputs for name in graph.compared}
        self._names = [name for names in self._tensors_of_layer.values() for name in names]
        self._threads, self._engine = threads, engine
        self._feeds = [{name: batch[name] for name in input_names} for batch in batches]
        if not self._feeds:
            raise DataError('no batch to compare the networks on; pass at least one')
        runner = self._runner(graph.network)
        self._references = [runner.run(feeds) for feeds in self._feeds]
        for name, tensors in self._tensors_of_layer.items():
            if not all(
                np.isfinite(outputs[tensor]).all() for outputs in self._references for tensor in tensors
            ):
                raise InferenceError(
                    f'{name}: has values that are not finite on the images of --calibrate, in float32 '
                    'already; check the checkpoint and the images'
                )

    def _runner(self, network: onnx.ModelProto) -> Runner | OpenVinoRunner:
        if self._engine == 'openvino':
            return OpenVinoRunner(network, self._names, self._threads)
        return Runner(network, self._names, optimization='all', threads=self._threads)

    def compare(self, network: onnx.ModelProto) -> Outputs:
        """Differences of another network's outputs on the same batches."""
        runner = self._runner(network)
        differences = {name: Difference() for name in self._tensors_of_layer}
        for feeds, reference in zip(self._feeds, self._references, strict=True):
            outputs = runner.run(feeds)
            for name, tensors in self._tensors_of_layer.items():
                for tensor in tensors:
                    differences[name].add(reference[tensor], outputs[tensor])
        return Outputs(differences)
