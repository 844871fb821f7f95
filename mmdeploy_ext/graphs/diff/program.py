"""Run the nodes of a graph one at a time on any values, and remember the results. Needs no torch."""

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.errors import InferenceError, one_line
from mmdeploy_ext.graphs.io.index import (
    RANDOM,
    Index,
    array_bytes,
    bodies,
    constant_value,
    operator_name,
)
from mmdeploy_ext.graphs.run import open_session

SHAPE_READERS = ('Shape', 'Size')
"""Their outputs depend on the shape of the input, not on its values."""
OUTPUT_TIES = {'TopK': 1}
"""Operator -> place of its output of indices, which may differ for equal values."""


class Constants:
    """Makes equal arrays one object, so that results can be looked up by identity."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...], bytes], np.ndarray] = {}

    def unique(self, array: np.ndarray) -> np.ndarray:
        digest = hashlib.sha256(array_bytes(array)).digest()
        return self._arrays.setdefault((str(array.dtype), array.shape, digest), array)


class Program:
    """A graph, which must not change meanwhile, as a list of steps over named arrays.

    Attributes:
        constants: name -> array of initializers, Constant nodes, and Identity nodes that copy them.
        defaults: name -> array of the initializers that are also inputs.
        steps: positions of all other nodes.
        static: outputs that depend on constants and sizes of tensors alone.
        functions: digest of the local functions.
    """

    def __init__(self, model: onnx.ModelProto, constants: Constants) -> None:
        self.index = Index(model)
        texts = sorted(function.SerializeToString(deterministic=True) for function in model.functions)
        self.functions = hashlib.sha256(repr(texts).encode()).digest()
        inputs = {value.name for value in model.graph.input}
        self.constants: dict[str, np.ndarray] = {}
        self.defaults: dict[str, np.ndarray] = {}
        for name, tensor in self.index.constants.items():
            arrays = self.defaults if name in inputs else self.constants
            arrays[name] = constants.unique(numpy_helper.to_array(tensor))
        self.steps: list[int] = []
        self.static: set[str] = set()
        for position, node in enumerate(self.index.nodes):
            is_identity = operator_name(node) == 'Identity'
            value = self.constants.get(node.input[0]) if is_identity else constant_value(node)
            if value is not None:
                self.constants[node.output[0]] = constants.unique(value)
                continue
            self.steps.append(position)
            names = self.index.reads(position)
            is_static = all(name in self.constants or name in self.static for name in names)
            if node.op_type in SHAPE_READERS or (is_static and node.op_type not in RANDOM):
                self.static.update(self.index.writes(position))

    def is_half(self) -> bool:
        arrays = (*self.constants.values(), *self.defaults.values())
        elements = [value.type.tensor_type.elem_type for value in self.index.graph.input]
        return onnx.TensorProto.FLOAT16 in elements or any(array.dtype == np.float16 for array in arrays)

    def fitting(self, name: str, feed: np.ndarray) -> np.ndarray:
        elements = {value.name: value.type.tensor_type.elem_type for value in self.index.graph.input}
        dtype = helper.tensor_dtype_to_np_dtype(elements[name]) if elements[name] else feed.dtype
        return feed.astype(dtype) if {dtype.kind, feed.dtype.kind} == {'f'} else feed


@dataclasses.dataclass
class Alignment:
    """Pairs of nodes (positions) and of tensors (names): graph on trial -> reference."""

    nodes: dict[int, int]
    tensors: dict[str, str]


class NodeRunner:
    """Runs single nodes in ONNX Runtime; the same node on the same arrays runs once, a random one too.

    Arrays are compared by identity: do not change an array that was given or returned.
    """

    def __init__(self) -> None:
        self._results: dict[tuple, list[np.ndarray] | InferenceError] = {}
        self._inputs: list[Sequence[np.ndarray]] = []  # an identity stays one as long as its array lives
        self._session: object = None
        self._session_key: tuple = ()

    def run(self, program: Program, position: int, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        node, names = program.index.nodes[position], program.index.reads(position)
        arrays = [values[name] for name in names]
        if operator_name(node) == 'Identity':
            return arrays
        opsets = tuple((entry.domain, entry.version) for entry in program.index.model.opset_import)
        key = (_definition(node), opsets, program.functions, tuple(map(id, arrays)))
        if key not in self._results:
            self._inputs.append(arrays)
            try:
                self._results[key] = self._compute(program, position, dict(zip(names, arrays, strict=True)))
            except Exception as error:
                label = f'{program.index.label(position)} ({node.op_type})'
                self._results[key] = InferenceError(f'{label}: {one_line(error)[:300]}')
        result = self._results[key]
        if isinstance(result, InferenceError):
            raise result
        return result

    def _compute(self, program: Program, position: int, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        names = program.index.writes(position)
        feeds = {name: array for name, array in values.items() if name not in program.constants}
        types = {name: _type_of(value) for name, value in feeds.items()}
        key = (program, position, tuple((name, kind.SerializeToString()) for name, kind in types.items()))
        if key != self._session_key:
            inputs = [onnx.ValueInfoProto(name=name, type=kind) for name, kind in types.items()]
            outputs = [onnx.ValueInfoProto(name=name) for name in names]
            constants = [
                numpy_helper.from_array(array, name) for name, array in values.items() if name not in feeds
            ]
            source, node = program.index.model, program.index.nodes[position]
            model = onnx.ModelProto(
                ir_version=source.ir_version,
                graph=helper.make_graph([node], 'node', inputs, outputs, constants),
                opset_import=source.opset_import,
                functions=source.functions,
            )
            self._session, self._session_key = open_session(model, 'none', 1), key
        return self._session.run(names, feeds)


def _type_of(value: np.ndarray | Sequence[np.ndarray]) -> onnx.TypeProto:
    if isinstance(value, np.ndarray):
        return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), None)
    dtype = value[0].dtype if value else np.dtype(np.float32)
    element = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), None)
    return helper.make_sequence_type_proto(element)


def _definition(node: onnx.NodeProto) -> bytes:
    unnamed = copy.deepcopy(node)
    for field in ('name', 'doc_string', 'metadata_props'):
        unnamed.ClearField(field)
    if next(bodies(node), None) is None:
        names = list(dict.fromkeys(name for name in node.input if name))
        unnamed.input[:] = [str(names.index(name)) if name else '' for name in node.input]
        unnamed.output[:] = [str(place) if name else '' for place, name in enumerate(node.output)]
    return unnamed.SerializeToString(deterministic=True)
