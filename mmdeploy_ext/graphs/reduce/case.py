"""Parts of a graph as models of their own, fed with the values that were recorded in the whole graph."""

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.errors import InferenceError, ModelFileError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index, constants_to_initializers, refill
from mmdeploy_ext.graphs.part import part
from mmdeploy_ext.graphs.run import Runner


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A part of a graph that runs alone, with the recorded values of its inputs.

    Attributes:
        positions: indices of its nodes in the whole graph, ascending.
        feeds: input of the model -> recorded value.
        outputs: compared tensors; the model may have further outputs behind them.
    """

    positions: tuple[int, ...]
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    outputs: tuple[str, ...]


class Case:
    """A graph of `prepare` with one set of inputs and every inner value that could be computed.

    `rounding` makes float16 tensors outputs of the candidates: ONNX Runtime on a CPU computes in float32 and
    rounds only outputs, so overflows would not show.
    """

    def __init__(self, model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
        self.index = Index(model)
        self.values = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        self.rounding = False
        self._sequences = values.keys() - self.values.keys()
        self._types = types.infer(model)

    @property
    def everything(self) -> tuple[int, ...]:
        return tuple(range(len(self.index.nodes)))

    def outputs_of(self, positions: Collection[int]) -> list[str]:
        nodes, graph_outputs = set(positions), set(self.index.outputs)
        outputs = [name for position in sorted(nodes) for name in self.index.writes(position)]
        return [
            name
            for name in outputs
            if name not in self._sequences
            and (name in graph_outputs or not nodes.issuperset(self.index.consumers(name)))
        ]

    def candidate(self, positions: Collection[int], outputs: Sequence[str] | None = None) -> Candidate | None:
        """Return a part as a model; None if it has no output, or needs a value that is missing.

        `outputs` None: all of `outputs_of`.
        """
        index, nodes = self.index, tuple(sorted(positions))
        names = self.outputs_of(nodes) if outputs is None else list(outputs)
        produced = {name for position in nodes for name in index.writes(position)}
        read = dict.fromkeys(name for position in nodes for name in index.reads(position))
        inputs = [name for name in read if name not in produced and name not in index.constants]
        if not names or any(name not in self.values for name in inputs):
            return None
        feeds = {name: self.values[name] for name in inputs}
        half = []
        for position in nodes if self.rounding else ():
            ends = [*index.reads(position), *index.writes(position)]
            # a cast to float32 is an output as well, since it would hide the rounding
            if any(self.values[name].dtype == np.float16 for name in ends if name in self.values):
                half += [name for name in index.writes(position) if name in self.values and name not in names]
        declared = [
            _declaration(name, self.values[name])
            if name in self.values
            else onnx.ValueInfoProto(name=name, type=self._types.get(name))
            for name in names + half
        ]
        model = part(index, nodes, [_declaration(name, array) for name, array in feeds.items()], declared)
        return Candidate(nodes, model, feeds, tuple(names))


def _declaration(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    is_text = array.dtype.kind in 'OSU'
    element = onnx.TensorProto.STRING if is_text else helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, element, list(array.shape))


def prepare(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return a copy with constants as initializers and without unneeded nodes."""
    result = copy.deepcopy(model)
    graph, index = result.graph, Index(model)
    for initializer in graph.initializer:
        if initializer.name in feeds:
            initializer.CopyFrom(numpy_helper.from_array(feeds[initializer.name], initializer.name))
    inputs = [value for value in graph.input if value.name not in index.constants]
    needed = (index.nodes[position] for position in index.ancestors(index.outputs))
    refill(graph, node=needed, input=inputs, value_info=())
    constants_to_initializers(graph)
    return result


def record(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return tensor name -> value of every input and node output of a prepared graph."""
    index = Index(model)
    inputs = {name: feeds[name] for name in index.inputs}
    names = [name for position in range(len(index.nodes)) for name in index.writes(position)]
    with contextlib.suppress(InferenceError, ModelFileError):
        return {**inputs, **Runner(model, names).run(inputs)}
    case = Case(model, inputs)
    for position in case.everything:
        candidate = case.candidate([position], index.writes(position))
        if candidate is not None:
            with contextlib.suppress(InferenceError, ModelFileError):
                outputs = Runner(candidate.model).run(candidate.feeds)
                arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
                case.values.update(arrays)
    return case.values
