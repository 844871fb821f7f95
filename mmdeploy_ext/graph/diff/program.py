"""Run the nodes of a graph one at a time on any values, and remember what each gave. Needs no torch."""

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import InferenceError
from mmdeploy_ext.graph.io.constants import constant_value
from mmdeploy_ext.graph.io.index import RANDOM, Index, bodies
from mmdeploy_ext.graph.run import open_session

SHAPE_READERS = ('Shape', 'Size')
"""Their outputs depend on the shape of what they read, not on its values."""
OUTPUT_TIES = {'TopK': 1}
"""Operators whose output at this position is an index, which may differ where values are equal."""


class Constants:
    """Arrays that are equal bit for bit become one object, so that results can be looked up by identity."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...], bytes], np.ndarray] = {}

    def one(self, array: np.ndarray) -> np.ndarray:
        """Return the first array that was given with these values."""
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        return self._known.setdefault((str(array.dtype), array.shape, digest), array)


class Program:
    """A graph, which must not change meanwhile, as a list of steps over named arrays.

    Attributes:
        constants: initializers, and what Constant and Identity nodes make of them.
        defaults: initializers that are inputs, too.
        steps: positions of all other nodes.
        static: tensors that depend on no value of an input, at most on its shape.
    """

    def __init__(self, model: onnx.ModelProto, constants: Constants) -> None:
        """Read the constants of a model; all programs whose results are compared share `constants`."""
        self.index = Index(model)
        fed = {value.name for value in model.graph.input}
        arrays = {
            name: constants.one(numpy_helper.to_array(tensor))
            for name, tensor in self.index.constants.items()
        }
        self.constants = {name: array for name, array in arrays.items() if name not in fed}
        self.defaults = {name: array for name, array in arrays.items() if name in fed}
        self.steps: list[int] = []
        self.static: set[str] = set()
        for position, node in enumerate(self.index.nodes):
            identity = node.op_type == 'Identity'
            value = self.constants.get(node.input[0]) if identity else constant_value(node)
            if value is not None:
                self.constants[node.output[0]] = constants.one(value)
                continue
            self.steps.append(position)
            fixed = all(name in self.constants or name in self.static for name in self.index.reads(position))
            if node.op_type in SHAPE_READERS or (fixed and node.op_type not in RANDOM):
                self.static.update(self.index.writes(position))

    def is_half(self) -> bool:
        """Return whether anything is computed in float16."""
        arrays = (*self.constants.values(), *self.defaults.values())
        fed = [value.type.tensor_type.elem_type for value in self.index.graph.input]
        return onnx.TensorProto.FLOAT16 in fed or any(array.dtype == np.float16 for array in arrays)

    def fitting(self, name: str, feed: np.ndarray) -> np.ndarray:
        """Return a float feed in the width that an input takes."""
        (kind,) = (value.type.tensor_type.elem_type for value in self.index.graph.input if value.name == name)
        wanted = helper.tensor_dtype_to_np_dtype(kind) if kind else feed.dtype
        return feed.astype(wanted) if {wanted.kind, feed.dtype.kind} == {'f'} else feed


@dataclasses.dataclass
class Alignment:
    """Which position and tensor of the left graph is which of the right one; constants are not among them."""

    nodes: dict[int, int]
    tensors: dict[str, str]


class NodeRunner:
    """Runs single nodes in ONNX Runtime; the same node on the same arrays runs once.

    Arrays are told apart by identity, so none that was given or returned may be changed.
    """

    def __init__(self) -> None:
        self._results: dict[tuple, list[np.ndarray] | InferenceError] = {}
        self._kept: list[Sequence[np.ndarray]] = []
        self._session: tuple[tuple, object, list[str]] | None = None

    def run(self, program: Program, position: int, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs that one node has, from `values` of all that it reads, constants included.

        Raises:
            InferenceError: ONNX Runtime refuses the node, or fails to run it on these arrays.
        """
        node, names = program.index.nodes[position], program.index.reads(position)
        arrays = [values[name] for name in names]
        if node.op_type == 'Identity':
            return arrays
        opsets = tuple((entry.domain, entry.version) for entry in program.index.model.opset_import)
        key = (_definition(node), opsets, tuple(map(id, arrays)))
        if key not in self._results:
            self._kept.append(arrays)  # an identity stays one as long as its array lives
            try:
                self._results[key] = self._compute(program, position, dict(zip(names, arrays, strict=True)))
            except Exception as error:
                what = f'{program.index.label(position)} ({node.op_type}): {one_line(error)[:300]}'
                self._results[key] = InferenceError(what)
        result = self._results[key]
        if isinstance(result, InferenceError):
            raise result
        return result

    def _compute(self, program: Program, position: int, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        fed = {name: array for name, array in values.items() if name not in program.constants}
        key = (id(program), position, tuple((name, str(array.dtype)) for name, array in fed.items()))
        if self._session is None or self._session[0] != key:
            self._session = (key, _open(program, position, values, fed), program.index.writes(position))
        _, session, names = self._session
        return session.run(names, fed)


def _open(
    program: Program, position: int, values: Mapping[str, np.ndarray], fed: Mapping[str, np.ndarray]
) -> object:
    source, node = program.index.model, program.index.nodes[position]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in fed.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in program.index.writes(position)]
    rest = [numpy_helper.from_array(array, name) for name, array in values.items() if name not in fed]
    graph = helper.make_graph([node], 'node', inputs, outputs, rest)
    parts = dict(opset_import=source.opset_import, functions=source.functions)
    return open_session(onnx.ModelProto(ir_version=source.ir_version, graph=graph, **parts), 'none', 1)


def _definition(node: onnx.NodeProto) -> bytes:
    """Return what a node does, without the names of its tensors; with them where it has bodies."""
    plain = copy.deepcopy(node)
    for field in ('name', 'doc_string', 'metadata_props'):
        plain.ClearField(field)
    if not any(True for _ in bodies(node)):
        seen = list(dict.fromkeys(name for name in node.input if name))
        plain.input[:] = [str(seen.index(name)) if name else '' for name in node.input]
        plain.output[:] = [str(place) if name else '' for place, name in enumerate(node.output)]
    return plain.SerializeToString(deterministic=True)
