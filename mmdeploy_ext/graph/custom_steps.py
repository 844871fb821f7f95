"""Runs a model with operators that no engine here has: these in Python, the others in ONNX Runtime.

A step is one node of an operator that Python computes, or all nodes between two of these. Needs no torch.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.part import part
from mmdeploy_ext.graph.run import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import onnxruntime

    Kernel = Callable[..., np.ndarray]
    """Takes the inputs of a node, and its attributes by name; returns the one output."""

PLUGIN_FIELDS = 'plugin_version', 'plugin_namespace'
"""Attributes by which TensorRT finds a plug-in; no kernel gets them."""


@dataclasses.dataclass(frozen=True)
class CustomStep:
    """A node that Python computes: its kernel, inputs, output and attributes."""

    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]

    def run(self, tensors: dict[str, np.ndarray]) -> None:
        """Add the node's output to the tensors."""
        inputs = [tensors[name] for name in self.inputs]
        tensors[self.output] = self.kernel(*inputs, **self.attributes)


@dataclasses.dataclass(frozen=True)
class EngineStep:
    """Nodes that ONNX Runtime computes, in one session."""

    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, tensors: dict[str, np.ndarray]) -> None:
        """Add the outputs of the session to the tensors."""
        try:
            values = self.session.run(list(self.outputs), {name: tensors[name] for name in self.inputs})
        except Exception as error:
            raise InferenceError(f'ONNX Runtime failed to run the model: {error}') from error
        tensors.update(zip(self.outputs, values, strict=True))


class SteppedModel:
    """A model in steps.

    Attributes:
        steps: in the order in which they run.
        outputs: names of the model's outputs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        kernels: Mapping[str, Kernel],
        *,
        optimization: str = 'all',
        threads: int = 0,
    ) -> None:
        """Cut the model, and open a session for each step of ONNX Runtime.

        Args:
            model: operators outside of ONNX's domains have one output, float32.
            kernels: by the `op_type` of such operators.
            optimization: of the sessions, see `graph.run.Runner`.
            threads: of the sessions; 0 leaves the choice to ONNX Runtime.

        Raises:
            ModelFileError: an operator has no kernel, or ONNX Runtime cannot load a step.
        """
        index = Index(model)
        custom = [at for at, node in enumerate(index.nodes) if node.domain not in DEFAULT_DOMAINS]
        for at in custom:
            if index.nodes[at].op_type not in kernels:
                raise ModelFileError(
                    f'node {index.label(at)}: no kernel in Python for {index.nodes[at].op_type}; there are '
                    f'{", ".join(kernels)}'
                )
        typed = _types_of(model, [name for at in custom for name in index.writes(at)])
        ends = [index.reads(at) for at in custom] + [index.outputs]
        groups = _groups(index, ends, custom)
        self.outputs = list(index.outputs)
        self.steps: list[CustomStep | EngineStep] = []
        for number, positions in enumerate(groups):
            later = {name for end in ends[number:] for name in end}
            later |= {name for group in groups[number + 1 :] for at in group for name in index.reads(at)}
            if (step := _engine_step(index, positions, later, typed, optimization, threads)) is not None:
                self.steps.append(step)
            if number < len(custom):
                node = index.nodes[custom[number]]
                attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
                for name in PLUGIN_FIELDS:
                    attributes.pop(name, None)
                step = CustomStep(kernels[node.op_type], tuple(node.input), node.output[0], attributes)
                self.steps.append(step)
        self._constants = {
            name: onnx.numpy_helper.to_array(index.constants[name])
            for step in self.steps
            for name in step.inputs
            if name in index.constants
        }

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return output name -> array, for feeds input -> array; InferenceError if a step fails."""
        tensors = {**self._constants, **feeds}
        for step in self.steps:
            step.run(tensors)
        return {name: tensors[name] for name in self.outputs}


def _types_of(model: onnx.ModelProto, outputs: Sequence[str]) -> dict[str, onnx.TypeProto]:
    """Return the types of all tensors, with those of other operators' `outputs` as float32."""
    typed = copy.deepcopy(model)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.output)}
    float32 = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    typed.graph.value_info.extend(value for value in float32 if value.name not in known)
    return types.infer(typed)


def _groups(index: Index, ends: Sequence[Sequence[str]], custom: Sequence[int]) -> list[list[int]]:
    """Return the nodes that run before each custom node, and those after the last, each group ascending.

    Nodes that depend on no input are in every group that reads them, so that an engine folds them.
    """
    constant = index.constant_nodes() - set(custom)
    available, groups = set(index.inputs), []
    for number, end in enumerate(ends):
        positions = index.ancestors(end, available)
        groups.append(positions)
        available |= {name for at in positions if at not in constant for name in index.writes(at)}
        if number < len(custom):
            available.update(index.writes(custom[number]))
    return groups


def _engine_step(
    index: Index,
    positions: Sequence[int],
    later: set[str],
    typed: Mapping[str, onnx.TypeProto],
    optimization: str,
    threads: int,
) -> EngineStep | None:
    """Return a session of some nodes, whose outputs are what is read `later`; None of no nodes."""
    written = {name for at in positions for name in index.writes(at)}
    outputs = [name for at in positions for name in index.writes(at) if name in later]
    if not outputs:
        return None
    read = dict.fromkeys(name for at in positions for name in index.reads(at))
    inputs = [name for name in read if name not in written and name not in index.constants]
    if untyped := [name for name in inputs if name not in typed]:
        raise ModelFileError(f'the type of {untyped[0]!r} cannot be inferred')
    values = [onnx.ValueInfoProto(name=name, type=typed[name]) for name in inputs]
    model = part(index, positions, values, [onnx.ValueInfoProto(name=name) for name in outputs])
    return EngineStep(open_session(model, optimization, threads), tuple(inputs), tuple(outputs))
