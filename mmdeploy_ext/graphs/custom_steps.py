"""Runs a model with operators that no engine here has: these in Python, the others in ONNX Runtime."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.base.errors import InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import DEFAULT_DOMAINS
from mmdeploy_ext.graphs.io.index import Index, node_attributes
from mmdeploy_ext.graphs.part import part
from mmdeploy_ext.graphs.run import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnxruntime

    Kernel = Callable[..., np.ndarray | tuple[np.ndarray, ...]]
    """Takes the inputs of a node, and its attributes by name; returns its output, or all in order."""

PLUGIN_FIELDS = 'plugin_version', 'plugin_namespace'
"""Attributes by which TensorRT finds a plug-in; no kernel gets them."""


@dataclasses.dataclass(frozen=True)
class CustomStep:
    """A node of which Python computes the outputs.

    `inputs` has '' for an omitted input; `attributes` has no `PLUGIN_FIELDS`, and texts as bytes.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, tensors: dict[str, np.ndarray]) -> None:
        inputs = [tensors[name] if name else None for name in self.inputs]
        values = self.kernel(*inputs, **self.attributes)
        values = values if isinstance(values, tuple) else (values,)
        tensors.update(zip(self.outputs, values, strict=True))


@dataclasses.dataclass(frozen=True)
class EngineStep:
    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, tensors: dict[str, np.ndarray]) -> None:
        try:
            values = self.session.run(list(self.outputs), {name: tensors[name] for name in self.inputs})
        except Exception as error:
            raise InferenceError(f'ONNX Runtime failed to run the model: {error}') from error
        tensors.update(zip(self.outputs, values, strict=True))


class SteppedModel:
    """A model as a list of steps, run in order."""

    def __init__(
        self,
        model: onnx.ModelProto,
        kernels: Mapping[str, Kernel],
        *,
        dtypes: Mapping[str, Sequence[str]] | None = None,
        optimization: str = 'all',
        threads: int = 0,
    ) -> None:
        """Cut the model, and open a session for each step of ONNX Runtime.

        Args:
            model: an operator of another domain, or a call of a local function, is in no body. Inputs
                with a default become constants.
            kernels: `op_type` of such an operator -> its kernel.
            dtypes: `op_type` -> dtypes of its outputs; float32 without these or a stated type.
            optimization: 'none', 'basic', 'extended' or 'all', see `graphs.run.Runner`.
            threads: threads of the sessions; 0: ONNX Runtime chooses.
        """
        index = Index(model)
        custom_nodes = [
            position for position, node in enumerate(index.nodes) if node.domain not in DEFAULT_DOMAINS
        ]
        for position in custom_nodes:
            if index.nodes[position].op_type not in kernels:
                raise ModelFileError(
                    f'node {index.label(position)}: no kernel in Python for {index.nodes[position].op_type}; '
                    f'there are {", ".join(kernels)}'
                )
        tensor_types = _types(model, [index.nodes[position] for position in custom_nodes], dtypes or {})
        targets = [index.reads(position) for position in custom_nodes] + [index.outputs]
        groups = _groups(index, targets, custom_nodes)
        self.outputs = list(index.outputs)
        self._defaults = index.constants.keys() & {value.name for value in index.graph.input}
        self.steps: list[CustomStep | EngineStep] = []
        for step_index, positions in enumerate(groups):
            read_afterwards = {name for names in targets[step_index:] for name in names}
            for group in groups[step_index + 1 :]:
                read_afterwards.update(name for position in group for name in index.reads(position))
            step = _engine_step(index, positions, read_afterwards, tensor_types, optimization, threads)
            if step is not None:
                self.steps.append(step)
            if step_index < len(custom_nodes):
                node = index.nodes[custom_nodes[step_index]]
                attributes = node_attributes(node)
                for name in PLUGIN_FIELDS:
                    attributes.pop(name, None)
                step = CustomStep(kernels[node.op_type], tuple(node.input), tuple(node.output), attributes)
                self.steps.append(step)
        used = {*self.outputs, *(name for step in self.steps for name in step.inputs)}
        self._inputs = [name for name in index.inputs if name in used]
        self._constants = {
            name: onnx.numpy_helper.to_array(index.constants[name]) for name in used & index.constants.keys()
        }

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if missing := [name for name in self._inputs if name not in feeds]:
            raise ShapeError(f'feed {missing[0]!r}: is missing; the model needs this input')
        if constants := self._defaults.intersection(feeds):
            name = min(constants)
            raise ShapeError(f'feed {name!r}: its default was made a constant of the steps; leave it out')
        tensors = {**feeds, **self._constants}
        for step in self.steps:
            step.run(tensors)
        return {name: tensors[name] for name in self.outputs}


def _types(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], dtypes: Mapping[str, Sequence[str]]
) -> dict[str, onnx.TypeProto]:
    typed = copy.deepcopy(model)
    stated = {value.name for value in (*typed.graph.value_info, *typed.graph.output)}
    for node in nodes:
        own = dtypes.get(node.op_type, ['float32'] * len(node.output))
        for name, dtype in zip(node.output, own, strict=True):
            if name not in stated:
                number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                typed.graph.value_info.append(helper.make_tensor_value_info(name, number, None))
    return types.infer(typed)


def _groups(index: Index, targets: Sequence[Sequence[str]], custom_nodes: Sequence[int]) -> list[list[int]]:
    constant_nodes = index.constant_nodes() - set(custom_nodes)
    available, groups = set(index.inputs), []
    for step_index, tensors in enumerate(targets):
        positions = index.ancestors(tensors, available)
        groups.append(positions)
        for position in positions:
            if position not in constant_nodes:
                available.update(index.writes(position))
        if step_index < len(custom_nodes):
            available.update(index.writes(custom_nodes[step_index]))
    return groups


def _engine_step(
    index: Index,
    positions: Sequence[int],
    read_afterwards: set[str],
    tensor_types: Mapping[str, onnx.TypeProto],
    optimization: str,
    threads: int,
) -> EngineStep | None:
    produced = [name for position in positions for name in index.writes(position)]
    outputs = [name for name in produced if name in read_afterwards]
    if not outputs:
        return None
    operands = dict.fromkeys(name for position in positions for name in index.reads(position))
    inputs = [name for name in operands if name not in produced and name not in index.constants]
    if untyped := [name for name in inputs if name not in tensor_types]:
        raise ModelFileError(f'the type of {untyped[0]!r} cannot be inferred')
    values = [onnx.ValueInfoProto(name=name, type=tensor_types[name]) for name in inputs]
    model = part(index, positions, values, [onnx.ValueInfoProto(name=name) for name in outputs])
    return EngineStep(open_session(model, optimization, threads), tuple(inputs), tuple(outputs))
