"""Nodes, inputs and initializers of an ONNX graph in the making."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence


class NodeWriter:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._shared: set[str] = set()

    def is_first_use(self, name: str) -> bool:
        """Whether a shared tensor has still to be written: True at the first call with a name."""
        is_new = name not in self._shared
        self._shared.add(name)
        return is_new

    def op(
        self, op_type: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: object
    ) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer, shared if equal; ValueError: the name has other values."""
        tensor = numpy_helper.from_array(np.asarray(values, order='C'), name)
        earlier = self.initializers.setdefault(name, tensor)
        if earlier is not tensor and earlier != tensor:
            raise ValueError(f'{name}: is an initializer with other values')
        return name

    def integers(self, *values: int) -> str:
        """Name of a shared int64 initializer (n,)."""
        name = 'shape.' + '_'.join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def input(self, name: str, elem_type: int, *axes: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, list(axes)))
        return name

    def split(self, tensor: str, lengths: str, count: int) -> None:
        """Cut a tensor along axis 0 into TENSOR.0, ...; `lengths` names a tensor (pieces,) int64."""
        self.op('Split', [tensor, lengths], [f'{tensor}.{piece}' for piece in range(count)], axis=0)
