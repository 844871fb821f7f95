"""The nodes, inputs and initializers of an ONNX graph in the making. Needs onnx and numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence


class NodeWriter:
    """Collects the `nodes`, `inputs` and `initializers` (by name) of a graph, in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._shared: set[str] = set()

    def is_first_use(self, name: str) -> bool:
        """Return whether this is the first call with a name: the caller then writes the tensor.

        Several nodes share such a tensor; later calls return False.
        """
        is_new = name not in self._shared
        self._shared.add(name)
        return is_new

    def op(
        self, op_type: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: object
    ) -> str:
        """Add a node, which is named after its first output; return that output.

        Args:
            op_type: operator, such as 'Gather'.
            inputs: names of its input tensors.
            output: name of its output, or the names of several.
            attributes: those of `onnx.helper.make_node`: attributes of the operator, and `domain`.
        """
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer of the shape and type of `values`; return its name.

        One of this name with the same shape, type and values is shared; ValueError: it has others.
        """
        tensor = numpy_helper.from_array(np.asarray(values, order='C'), name)
        earlier = self.initializers.setdefault(name, tensor)
        if earlier is not tensor and earlier != tensor:
            raise ValueError(f'{name}: is an initializer with other values')
        return name

    def integers(self, *values: int) -> str:
        """Return the name of an int64 initializer (n,) with these n values; equal ones are shared."""
        name = 'shape.' + '_'.join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def input(self, name: str, elem_type: int, *axes: int | str) -> str:
        """Declare an input, return its name; `elem_type` is one of `TensorProto`, axes are sizes or names.

        Without axes it is a scalar.
        """
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, list(axes)))
        return name

    def split(self, tensor: str, lengths: str, pieces: int) -> None:
        """Cut a tensor along axis 0 into TENSOR.0, TENSOR.1, ...

        `lengths` is the name of the tensor (pieces,) int64 with their lengths, which may be a computed one:
        an input of Split since opset 13.
        """
        self.op('Split', [tensor, lengths], [f'{tensor}.{piece}' for piece in range(pieces)], axis=0)
