"""How sensitive layers are to INT8, and which have to stay float for the network to keep its outputs.

Errors are of what the last layers give (logits, deltas, kernels, masks), before any post-processing: the norm
of the difference over the norm in float32, over some images. The figure of a network is its worst output's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ExportError, InferenceError, ModelFileError
from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.engines.openvino import compiled, require_openvino
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.quantize.calibrate import tracked
from mmdeploy_ext.quantize.difference import Difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph, Layer
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser


class OpenVinoRunner:
    """A network in OpenVINO, float32 where it is not INT8: the counterpart of `graph.run.Runner`."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], threads: int) -> None:
        require_openvino('openvino nncf')
        try:
            self._compiled = compiled(model.SerializeToString(), threads)
        except RuntimeError as error:
            text = ' '.join(str(error).split())
            raise ModelFileError(f'OpenVINO cannot compile the network: {text}') from error
        self._names = list(names)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return name -> array; InferenceError where OpenVINO failed."""
        try:
            found = self._compiled(dict(feeds))
        except RuntimeError as error:
            raise InferenceError(f'OpenVINO failed to run the network: {error}') from error
        return {name: np.array(found[name]) for name in self._names}


@dataclasses.dataclass(frozen=True)
class Outputs:
    """How far the outputs of a network are from float32's: by last layer, all its levels together."""

    by_layer: Mapping[str, Difference]

    @property
    def error(self) -> float:
        """The worst output's."""
        return max(difference.error for difference in self.by_layer.values())

    @property
    def cosine(self) -> float:
        """The worst output's."""
        return min(difference.cosine for difference in self.by_layer.values())

    def to_json(self) -> dict[str, Any]:
        """Return the figures by output."""
        return {name: difference.to_json() for name, difference in self.by_layer.items()}


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """What one layer alone in INT8 does to the outputs."""

    layer: Layer
    outputs: Outputs

    def to_json(self) -> dict[str, Any]:
        """Return name, operator, parameters, error and cosine."""
        facts = {name: getattr(self.layer, name) for name in ('name', 'operator', 'parameters')}
        return facts | {name: getattr(self.outputs, name) for name in ('error', 'cosine')}


@dataclasses.dataclass(frozen=True)
class Exclusion(Plain):
    """Layers that stay float because INT8 changes the outputs too much there.

    Attributes:
        kept: their names, the most sensitive first.
        errors: of the network without any exclusion, then after each.
        reached: whether the last error is within what was asked for.
    """

    kept: tuple[str, ...]
    errors: tuple[float, ...]
    reached: bool


class Probe:
    """The float network's outputs on a few batches (input name -> array), to compare others with.

    `threads` are those within an operator, 0 leaves the choice to the engine, which runs all networks. Where
    an output of the float network is not finite, nothing can be compared with it: an InferenceError.
    """

    def __init__(
        self,
        graph: DenseGraph,
        batches: Iterable[Mapping[str, np.ndarray]],
        threads: int = 0,
        engine: str = 'onnxruntime',
    ) -> None:
        needed = [value.name for value in graph.network.graph.input]
        self._last = {name: graph.layer(name).outputs for name in graph.compared}
        self._names = [name for names in self._last.values() for name in names]
        self._threads, self._engine = threads, engine
        self._feeds = [{name: batch[name] for name in needed} for batch in batches]
        runner = self._runner(graph.network)
        self._references = [runner.run(feeds) for feeds in self._feeds]
        for name, tensors in self._last.items():
            if not all(np.isfinite(found[tensor]).all() for found in self._references for tensor in tensors):
                raise InferenceError(
                    f'{name}: gives values that are not finite in float32 already, on the images of '
                    f'--calibrate; INT8 keeps no such outputs: check the checkpoint and the images'
                )

    def _runner(self, network: onnx.ModelProto) -> Runner | OpenVinoRunner:
        if self._engine == 'openvino':
            return OpenVinoRunner(network, self._names, self._threads)
        return Runner(network, self._names, optimization='all', threads=self._threads)

    def compare(self, network: onnx.ModelProto) -> Outputs:
        """Run a network on the same batches."""
        runner = self._runner(network)
        found = {name: Difference() for name in self._last}
        for feeds, reference in zip(self._feeds, self._references, strict=True):
            outputs = runner.run(feeds)
            for name, tensors in self._last.items():
                for tensor in tensors:
                    found[name].add(reference[tensor], outputs[tensor])
        return Outputs(found)


def rank(quantiser: DenseQuantiser, probe: Probe, layers: Sequence[str]) -> list[LayerSensitivity]:
    """Return what each of the layers does when it alone is in INT8, the most sensitive first."""
    found = [
        LayerSensitivity(quantiser.graph.layer(name), probe.compare(quantiser.network([name])))
        for name in tracked(layers, 'layer by layer')
    ]
    return sorted(found, key=lambda one: _order(one.outputs.error), reverse=True)


def exclude(
    quantiser: DenseQuantiser | NncfQuantiser,
    probe: Probe,
    ranked: Sequence[LayerSensitivity],
    max_error: float,
    budget: int,
) -> Exclusion:
    """Keep the most sensitive layers in float, one after the other, until the outputs are near enough.

    Args:
        quantiser: calibrated.
        probe: to compare with.
        ranked: of `rank`; all layers that would be in INT8.
        max_error: of the worst output.
        budget: at most so many layers.

    Raises:
        ExportError: the budget reaches the last layer, and even that one alone is not near enough: what is
            left would be the float network.
    """
    names = [one.layer.name for one in ranked]
    errors = [probe.compare(quantiser.network(names)).error]
    for count in tracked(range(1, min(budget, len(names)) + 1), 'keeping layers float'):
        if errors[-1] <= max_error:
            break
        if count == len(names):
            raise ExportError(
                f'--max-error {max_error:g}: is not held while any of the {len(names)} layers is in INT8 '
                f'(with {names[-1]} alone the worst output is off by {errors[-1]:.4g}); no file was written: '
                f'raise --max-error, lower --budget, or leave fewer layers float (--keep-float)'
            )
        errors.append(probe.compare(quantiser.network(names[count:])).error)
    return Exclusion(tuple(names[: len(errors) - 1]), tuple(errors), errors[-1] <= max_error)


def _order(error: float) -> float:
    return math.inf if math.isnan(error) else error
