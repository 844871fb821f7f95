"""INT8 for dense graphs: ranges from images, codes by ONNX Runtime's own quantiser, as Q/DQ pairs.

Activations are uint8 and weights int8 per output channel: that is what CPUs with VNNI multiply in one step;
with int8 on both sides ONNX Runtime was measured at twice the time. Needs onnx and onnxruntime, no torch.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.core.errors import ExportError, InferenceError, Mm2OnnxError, ModelFileError
from mmdeploy_ext.graph import edits
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import reads, refill
from mmdeploy_ext.graph.passes.fp16 import PRODUCTS
from mmdeploy_ext.graph.passes.simplify import suppress_output
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.quantize import DENSE_METHODS, PERCENTILE
from mmdeploy_ext.quantize.calibrate import tracked
from mmdeploy_ext.quantize.calibrators import calibrator
from mmdeploy_ext.quantize.compact import compact
from mmdeploy_ext.quantize.dense_layers import DenseGraph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

OPERATORS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul', 'Relu', 'Clip', 'MaxPool', 'Add', 'Resize')
INFERRED = ('onnx.infer', 'onnxruntime.quant')
"""Entry by which the quantiser knows that a model has its types; without it, it infers them every time."""
MINMAX = DENSE_METHODS[0]
QUANTISE = 'quantize'
"""The edit that an INT8 file's record names."""
SHOWN = 10
"""Layers that a refusal names."""


class DenseQuantiser:
    """Quantises layers of a graph, any set of them, with ranges that were found once.

    Args:
        graph: the float model.
        reduce_range: 7-bit weights, for CPUs without VNNI, whose sums of two products saturate at 16 bits.
    """

    def __init__(self, graph: DenseGraph, reduce_range: bool = False) -> None:
        self.graph, self.reduce_range = graph, reduce_range
        self.ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._infinite: set[str] = set()
        self._typed = _with_types(graph.network)

    def calibrate(
        self,
        batches: Iterable[Mapping[str, np.ndarray]],
        method: str = MINMAX,
        percentile: float = PERCENTILE,
    ) -> None:
        """Find the range of every activation; InferenceError: ONNX Runtime failed.

        Args:
            batches: input name -> array; what the network does not take is left out. Gone through once, or
                twice where `method` needs a histogram.
            method: 'minmax', 'percentile' or 'mse' (the last two clip what minmax finds).
            percentile: of |x|, in percent.
        """
        needed = [value.name for value in self.graph.network.graph.input]

        def feeds(what: str) -> Iterator[dict[str, np.ndarray]]:
            for batch in tracked(batches, what):
                yield {name: batch[name] for name in needed}

        found = _minmax(self._typed, feeds('calibrating'))
        self.ranges = {name: pair for name, pair in found.items() if np.isfinite(pair).all()}
        self._infinite = found.keys() - self.ranges.keys()
        if method != MINMAX:
            self._clip(feeds('histograms'), method, percentile)

    def _clip(self, feeds: Iterable[Mapping[str, np.ndarray]], method: str, percentile: float) -> None:
        collectors = {name: calibrator(method, percentile) for name in self.ranges}
        runner = Runner(self.graph.network, list(collectors))
        for feed in feeds:
            for name, values in runner.run(feed).items():
                collectors[name].collect(values)
        for name, (low, high) in self.ranges.items():
            bound = np.asarray(collectors[name].amax(), low.dtype)
            if bound > 0:
                self.ranges[name] = (np.maximum(low, -bound), np.minimum(high, bound))

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with these layers in INT8; without any, the float network.

        Raises:
            InferenceError: an activation of theirs is not finite. Others may be: RT-DETR's anchors at the
                border of an image are infinite.
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData
        from onnxruntime.quantization.calibrate import CalibrationMethod

        model = copy.deepcopy(self._typed if layers else self.graph.network)
        if not layers:
            return model
        nodes = self.graph.int8_nodes(layers)
        self._check_finite(nodes)
        ranges = TensorsData(CalibrationMethod.MinMax, dict(self.ranges))
        with suppress_output():
            quantiser = QDQQuantizer(
                model, True, self.reduce_range, QuantType.QInt8, QuantType.QUInt8, ranges, nodes, [],
                list(OPERATORS), {},
            )  # fmt: skip
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        _drop_unused_constants(quantiser.model.model.graph)
        return quantiser.model.model

    def used_ranges(self, layers: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the ranges of what the nodes of these layers read and write."""
        nodes = set(self.graph.int8_nodes(layers))
        chosen = [node for node in self.graph.network.graph.node if node.name in nodes]
        names = dict.fromkeys(name for node in chosen for name in (*node.input, *node.output))
        return {name: self.ranges[name] for name in names if name in self.ranges}

    def _check_finite(self, names: Sequence[str]) -> None:
        for node in (node for node in self.graph.network.graph.node if node.name in set(names)):
            if infinite := [name for name in (*node.input, *node.output) if name in self._infinite]:
                raise InferenceError(
                    f'tensor {infinite[0]!r} of node {node.name} is not finite on the calibration images; '
                    f'see its weights, or leave the layer in float'
                )


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Drop Constant nodes that nobody reads; ONNX Runtime's function drops what bodies (Loop) read, too."""
    used = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if node.op_type != 'Constant' or used.intersection(node.output)]
    refill(graph, node=nodes)


def layers_in_int8(graph: DenseGraph, network: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Return those of the layers whose weights are int8 codes in a network: what a file may call INT8.

    None is an ExportError.
    """
    makers = {name: node.op_type for node in network.graph.node for name in node.output}
    coded = {
        node.name
        for node in network.graph.node
        if node.op_type in PRODUCTS and makers.get(node.input[PRODUCTS[node.op_type]]) == 'DequantizeLinear'
    }
    found = [name for name in layers if coded.issuperset(graph.layer(name).nodes)]
    if not found:
        raise ExportError(
            f'none of the {len(layers)} layers is in INT8 after quantising: the file would be the float '
            f'network; no file was written. See --keep-float, --max-error and the weights'
        )
    return found


def finished(graph: DenseGraph, network: onnx.ModelProto, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the whole model around an INT8 network, compact, with facts as text beside the metadata."""
    model = compact(graph.joined(network))
    for key, value in facts.items():
        model.metadata_props.add(key=f'int8.{key}', value=str(value))
    return model


def _with_types(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the type of every tensor that a range may be asked of."""
    model = copy.deepcopy(network)
    graph = model.graph
    known = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    nodes = [node for node in graph.node if node.op_type in OPERATORS]
    wanted = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    found = types.infer(model)
    del graph.value_info[:]
    model.metadata_props.add(key=INFERRED[0], value=INFERRED[1])
    for name in wanted:
        if name not in known and name in found:
            graph.value_info.add(name=name, type=found[name])
    return model


def _minmax(
    model: onnx.ModelProto, feeds: Iterator[dict[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the least and largest value of every float tensor of the operators, by ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder, suppress_output(), _explained(folder):
        source = Path(folder) / 'network.onnx'
        model = copy.deepcopy(model)  # saving moves the weights out of what is saved
        onnx.save_model(model, str(source), save_as_external_data=True)
        collector = create_calibrator(
            source, OPERATORS, str(Path(folder) / 'ranges.onnx'), CalibrationMethod.MinMax, True
        )
        collector.collect_data(Reader())
        found = collector.compute_data().data
    return {name: (np.asarray(data.lowest), np.asarray(data.highest)) for name, data in found.items()}


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
    """Turn what ONNX Runtime and a full disk raise while ranges are measured into errors of this project."""
    try:
        yield
    except Mm2OnnxError:
        raise
    except OSError as error:
        raise Mm2OnnxError(
            f'{folder}: the temporary copy of the network could not be written ({error.strerror or error}); '
            f'free some space, or name a folder with more in TMPDIR'
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith('onnxruntime'):
            raise
        raise InferenceError(f'ONNX Runtime cannot run the network to measure ranges: {error}') from error


def check_weights(graph: DenseGraph, path: object) -> None:
    """Refuse a float model whose layers have NaN or infinite weights or biases: it has no outputs to keep."""
    nodes = {node.name: node for node in graph.network.graph.node}
    broken = []
    for layer in graph.layers:
        names = {name for node in layer.nodes for name in nodes[node].input if name in graph.index.constants}
        values = [onnx.numpy_helper.to_array(graph.index.constants[name]) for name in sorted(names)]
        count = sum(int((~np.isfinite(array)).sum()) for array in values if array.dtype.kind == 'f')
        if count:
            broken.append(f'{layer.name}: {count} of {sum(array.size for array in values)}')
    if broken:
        raise ModelFileError(
            f'{path}: weights that are not finite in {len(broken)} layers ({"; ".join(broken[:SHOWN])}); the '
            f'training diverged or the file is damaged: export another checkpoint'
        )


def record(model: onnx.ModelProto, quantiser: object, layers: Sequence[str]) -> None:
    """Keep in an INT8 model, in place, how its layers were quantised, so that a proof does it again.

    The ranges of the activations are in the record; scales of weights follow from the weights. So the proof
    compares every layer, code and scale of the file with what the checkpoint gives. What NNCF does cannot be
    done again.
    """
    if not isinstance(quantiser, DenseQuantiser):
        edits.record(model, f'{QUANTISE} --engine openvino', dict(layers=list(layers)), 'nncf')
        return
    used = quantiser.used_ranges(layers).items()
    ranges = {name: [np.asarray(end).item() for end in ends] for name, ends in used}
    arguments = dict(layers=list(layers), ranges=ranges, reduce_range=quantiser.reduce_range)
    edits.record(model, QUANTISE, arguments, 'onnxruntime')


def quantise_again(
    model: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Sequence[float]], reduce_range: bool
) -> onnx.ModelProto:
    """Return a float model with these layers in INT8, by the ranges of a record: least and largest values.

    Raises:
        UsageError: a layer that the model lacks.
        InferenceError: a range that is missing or not finite.
    """
    graph = DenseGraph(model)
    quantiser = DenseQuantiser(graph, reduce_range)
    quantiser.ranges = {
        name: tuple(np.asarray(end, np.float32) for end in ends) for name, ends in ranges.items()
    }
    return finished(graph, quantiser.network(layers), {})
