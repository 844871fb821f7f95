"""INT8 for dense graphs: ranges from images, codes by ONNX Runtime's quantiser, as Q/DQ pairs.

Activations are uint8 and weights int8 per output channel: that is what CPUs with VNNI multiply in one step;
with int8 on both sides ONNX Runtime was measured at twice the time. Needs onnx and onnxruntime, no torch.

`quantize_static` gives the same nodes and constants (a test compares them), but it calibrates in every call:
measured on the ATSS toy with 4 images 0.55 s of CPU time for one layer in INT8, against 0.02 s here, with the
ranges of one calibration. `dense_sensitivity.rank` makes such a network for every layer, and a proof repeats
a file from the ranges in its record, without images. ONNX Runtime 1.20, the oldest one that is supported, has
no cache of ranges (1.31 has `calibration_cache_path`).
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.core.cli import suppress_output
from mmdeploy_ext.core.errors import ExportError, InferenceError, Mm2OnnxError
from mmdeploy_ext.graph import edits
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import reads, refill
from mmdeploy_ext.graph.passes.fp16 import PRODUCTS
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.quantize import DENSE_METHODS, PERCENTILE, tracked
from mmdeploy_ext.quantize.calibrators import make_calibrator
from mmdeploy_ext.quantize.compact import compact
from mmdeploy_ext.quantize.dense_layers import DenseGraph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

OPERATORS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul', 'Relu', 'Clip', 'MaxPool', 'Add', 'Resize')
"""Operators that can be in INT8, whose inputs and outputs are measured."""
INFERRED_KEY, INFERRED_VALUE = 'onnx.infer', 'onnxruntime.quant'
"""Metadata that tells the quantiser that a model has types; without it, it infers them each time."""
MINMAX = DENSE_METHODS[0]
"""The default method of ranges."""
QUANTISE = 'quantize'
"""Name of the edit in the record of an INT8 file."""
Range = tuple[np.ndarray, np.ndarray]
"""Smallest and largest value of a tensor, float32, of shape (1,) if ONNX Runtime measured them, () if they
were read from the record of a file."""


class DenseQuantiser:
    """Quantises any set of layers of a graph with the ranges of one calibration.

    Attributes:
        graph: float model, of whose `network`, its part up to the last layers, layers are quantised.
        reduce_range: whether weights have 7 bits, for CPUs without VNNI, whose sums of two products saturate
            at 16 bits.
        ranges: tensor -> range; set by `calibrate`.
    """

    def __init__(self, graph: DenseGraph, reduce_range: bool = False) -> None:
        self.graph, self.reduce_range = graph, reduce_range
        self.ranges: dict[str, Range] = {}
        self._infinite: set[str] = set()
        self._typed_network = _with_types(graph.network)

    def calibrate(
        self,
        batches: Iterable[Mapping[str, np.ndarray]],
        method: str = MINMAX,
        percentile: float = PERCENTILE,
    ) -> None:
        """Measure the range of every activation of `OPERATORS`, in place of what was measured before.

        A tensor with an infinite value, or NaN throughout, gets no range. One with single NaN gets a range by
        'minmax', which leaves them out, and none by a histogram.

        Args:
            batches: input name -> array; surplus inputs are ignored. They are iterated once, or twice if
                `method` needs a histogram: then a generator does not do.
            method: 'minmax', 'percentile' or 'mse' (the last two clip the ranges of minmax).
            percentile: percentile of |x|, in percent, above 0 and at most 100; for the method of that name.

        Raises:
            KeyError: a batch lacks an input of the network.
            UsageError: an unknown method or percentile.
            InferenceError: ONNX Runtime failed.
            Mm2OnnxError: a temporary copy of the network cannot be written.
        """
        input_names = [value.name for value in self.graph.network.graph.input]

        def feeds(title: str) -> Iterator[dict[str, np.ndarray]]:
            for batch in tracked(batches, title):
                yield {name: batch[name] for name in input_names}

        ranges = _minmax_ranges(self._typed_network, feeds('calibrating'))
        self.ranges = {name: ends for name, ends in ranges.items() if np.isfinite(ends).all()}
        self._infinite = ranges.keys() - self.ranges.keys()
        if method == MINMAX:
            return
        calibrators = {name: make_calibrator(method, percentile) for name in self.ranges}
        runner = Runner(self.graph.network, list(calibrators))
        for feed in feeds('histograms'):
            for name, values in runner.run(feed).items():
                try:
                    calibrators[name].collect(values)
                except ValueError:  # NaN, which the minimum and maximum of ONNX Runtime pass over
                    self._infinite.add(name)
        self.ranges = {name: ends for name, ends in self.ranges.items() if name not in self._infinite}
        for name, (low, high) in self.ranges.items():
            bound = np.asarray(calibrators[name].amax(), low.dtype)
            if bound > 0:
                self.ranges[name] = (np.maximum(low, -bound), np.minimum(high, bound))

    def network(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Return the network with these layers (`Layer.name`) in INT8; without any, the float network.

        Raises:
            InferenceError: an activation of these layers is not finite. Others may be: RT-DETR's anchors at
                the border of an image are infinite. 'minmax' finds infinite values alone and leaves NaN out
                of the range; `dense_sensitivity.Probe` finds NaN that reaches the outputs.
            KeyError: there is no layer of a name.
            ValueError: an activation has no range, as before `calibrate`.
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData
        from onnxruntime.quantization.calibrate import CalibrationMethod

        if not layers:
            return copy.deepcopy(self.graph.network)
        nodes = self._int8_nodes(layers)
        for node in nodes:
            if infinite := [name for name in (*node.input, *node.output) if name in self._infinite]:
                raise InferenceError(
                    f'tensor {infinite[0]!r} of node {node.name} is not finite on the calibration images; '
                    f'see its weights, or leave the layer in float'
                )
        with suppress_output():
            quantiser = QDQQuantizer(
                copy.deepcopy(self._typed_network),
                per_channel=True,
                reduce_range=self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
                nodes_to_quantize=[node.name for node in nodes],
                nodes_to_exclude=[],
                op_types_to_quantize=list(OPERATORS),
                extra_options={},
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        # ONNX Runtime's own function would also remove Constant nodes that bodies (Loop) read
        network = quantiser.model.model
        used = {name for node in network.graph.node for name in reads(node)}
        used |= {value.name for value in network.graph.output}
        refill(
            network.graph,
            node=[
                node
                for node in network.graph.node
                if node.op_type != 'Constant' or used.intersection(node.output)
            ],
        )
        return network

    def _int8_nodes(self, layers: Sequence[str]) -> list[onnx.NodeProto]:
        names = set(self.graph.int8_nodes(layers))
        return [node for node in self.graph.network.graph.node if node.name in names]


def layers_in_int8(graph: DenseGraph, network: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Return those of the layers whose weights are int8 codes in a network, in their order.

    Args:
        graph: the float model.
        network: its network after quantisation.
        layers: names of layers that were to be in INT8.

    Raises:
        ExportError: there are none.
    """
    producers = {name: node.op_type for node in network.graph.node for name in node.output}
    int8_nodes = {
        node.name
        for node in network.graph.node
        if node.op_type in PRODUCTS
        and producers.get(node.input[PRODUCTS[node.op_type]]) == 'DequantizeLinear'
    }
    int8_layers = [name for name in layers if int8_nodes.issuperset(graph.layer(name).nodes)]
    if not int8_layers:
        raise ExportError(
            f'none of the {len(layers)} layers is in INT8 after quantising: the file would be the float '
            f'network; no file was written. See --keep-float, --max-error and the weights'
        )
    return int8_layers


def finish_model(graph: DenseGraph, network: onnx.ModelProto, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a copy of the model of `graph` with an INT8 network in place of its own.

    Its equal constants are merged, and names that the quantiser gave are shortened (`compact`). The entries
    of `facts` are added to its metadata, as `int8.KEY` with `str` of the value.
    """
    model = compact(graph.joined(network))
    for key, value in facts.items():
        model.metadata_props.add(key=f'int8.{key}', value=str(value))
    return model


def _with_types(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the types of inputs and outputs of all `OPERATORS`, which the quantiser reads."""
    model = copy.deepcopy(network)
    graph = model.graph
    declared = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    nodes = [node for node in graph.node if node.op_type in OPERATORS]
    names = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    type_of = types.infer(model)
    del graph.value_info[:]
    model.metadata_props.add(key=INFERRED_KEY, value=INFERRED_VALUE)
    for name in names:
        if name not in declared and name in type_of:
            graph.value_info.add(name=name, type=type_of[name])
    return model


def _minmax_ranges(model: onnx.ModelProto, feeds: Iterator[dict[str, np.ndarray]]) -> dict[str, Range]:
    """Return the range of every float tensor of `OPERATORS`, measured by ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder, suppress_output():
        path = Path(folder) / 'network.onnx'
        model = copy.deepcopy(model)  # saving moves the weights out of what is saved
        try:
            onnx.save_model(model, str(path), save_as_external_data=True)
            calibrator = create_calibrator(
                path,
                OPERATORS,
                str(Path(folder) / 'ranges.onnx'),
                CalibrationMethod.MinMax,
                use_external_data_format=True,
            )
            calibrator.collect_data(Reader())
            ranges = calibrator.compute_data().data
        except Mm2OnnxError:
            raise
        except OSError as error:
            raise Mm2OnnxError(
                f'{folder}: the temporary copy of the network could not be written '
                f'({error.strerror or error}); free some space, or name a folder with more in TMPDIR'
            ) from error
        except Exception as error:
            if not type(error).__module__.startswith('onnxruntime'):
                raise
            raise InferenceError(f'ONNX Runtime cannot run the network to measure ranges: {error}') from error
    return {name: (np.asarray(ends.lowest), np.asarray(ends.highest)) for name, ends in ranges.items()}


def record(model: onnx.ModelProto, quantiser: object) -> None:
    """Record in a model, in place, that it was quantised: by a `DenseQuantiser`, or else by NNCF."""
    is_ours = isinstance(quantiser, DenseQuantiser)
    edits.record(model, QUANTISE if is_ours else f'{QUANTISE} --engine openvino')
