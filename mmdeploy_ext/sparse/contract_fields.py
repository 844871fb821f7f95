"""What is known of the nodes of a libspconv file: attributes by operator, what is wrong, a node as read.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). Needs onnx and numpy only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

ERROR, WARNING = 'error', 'warning'
DEFAULT_OUTPUT_BOUND = 150000
DEFAULT_LAUNCH_POINTS = 10000
INT8 = 'int8'


@dataclasses.dataclass(frozen=True)
class Violation:
    """One thing in a file that the engine would not do as the author meant.

    Attributes:
        node: name of the node; '' for the file as a whole.
        attribute: attribute, initializer or tensor that it is about; '' for the node as a whole.
        rule: short name of the rule, e.g. 'missing-bias'.
        message: what is there, what was expected, what the engine does with it.
        severity: 'error': wrong or no results; 'warning': probably not what was meant.
    """

    node: str
    attribute: str
    rule: str
    message: str
    severity: str = ERROR


@dataclasses.dataclass(frozen=True)
class Field:
    """One attribute: its name, the ONNX type that it must have, and what stands in when it is missing."""

    name: str
    kind: str
    default: Any
    needed: str = ''
    """Severity of its absence; '' when the default is what a plain file means."""


PRECISIONS = (Field('precision', 'STRING', ''), Field('output_precision', 'STRING', ''))
ADD_FIELDS = (
    Field('input0_dynamic_range', 'FLOAT', 0.0),
    Field('input1_dynamic_range', 'FLOAT', 0.0),
    *PRECISIONS,
)
READ = {
    'SparseConvolution': (
        Field('kernel_size', 'INTS', (), ERROR),
        Field('stride', 'INTS', (), ERROR),
        Field('padding', 'INTS', (), ERROR),
        Field('dilation', 'INTS', (), ERROR),
        Field('subm', 'INT', 0, ERROR),
        Field('inverse', 'INT', 0),
        Field('activation', 'STRING', '', WARNING),
        Field('output_bound', 'INT', DEFAULT_OUTPUT_BOUND, WARNING),
        Field('rulebook', 'STRING', ''),
        Field('input_dynamic_range', 'FLOAT', 0.0),
        Field('weight_dynamic_ranges', 'FLOATS', ()),
        Field('fixed_launch_points', 'INT', DEFAULT_LAUNCH_POINTS),
        *PRECISIONS,
    ),
    'Add': ADD_FIELDS,
    'QuantAdd': ADD_FIELDS,
    'Relu': (),
    'ScatterDense': (
        Field('input_spatial_shape', 'INTS', (), ERROR),
        Field('output_shape', 'INTS', (), ERROR),
        Field('format', 'STRING', '', ERROR),
        Field('input_dynamic_range', 'FLOAT', 0.0),
        Field('output_layout', 'STRING', ''),
    ),
    'Transpose': (Field('dims', 'INTS', (), ERROR),),
    'Reshape': (Field('dims', 'INTS', (), ERROR),),
}
"""Operator -> every attribute that the parser reads."""
WRITTEN = (
    Field('ndim', 'INT', 3),
    Field('in_channels', 'INT', 0),
    Field('out_channels', 'INT', 0),
    Field('groups', 'INT', 1),
    Field('transposed', 'INT', 0),
    Field('output_padding', 'INTS', ()),
    Field('input_spatial_shape', 'INTS', ()),
    Field('output_spatial_shape', 'INTS', ()),
    Field('output_shape', 'INTS', ()),
)
"""Attributes of a convolution that exporters write and the parser never reads."""
INPUTS = {'SparseConvolution': 3, 'Add': 2, 'QuantAdd': 2}
"""Inputs that the parser takes by position; 1 elsewhere."""
EMPTY = {'INT': 0, 'FLOAT': 0.0, 'STRING': '', 'INTS': (), 'FLOATS': ()}
"""What protobuf gives for a field that an attribute of another type has left unset."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One node as the engine knows it.

    Attributes:
        name: of the node; its operator and index when it has none.
        op_type: of the node.
        inputs: names of tensors, without the initializers.
        output: name of the tensor.
        values: every attribute that the parser reads, defaults filled in.
        written: attributes of convolutions that only their author reads.
        weight: (O, k0, k1, k2, I) float16; empty where the parser could not take it.
        bias: (O,) float16; likewise.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    values: dict[str, Any]
    written: dict[str, Any]
    weight: np.ndarray
    bias: np.ndarray

    @property
    def is_convolution(self) -> bool:
        """Whether it is a sparse convolution."""
        return self.op_type == 'SparseConvolution'


def read_attribute(node: onnx.NodeProto, field: Field) -> tuple[Any, onnx.AttributeProto | None]:
    """Return the value that the parser reads and the attribute that it reads it from, if there is one."""
    for attribute in node.attribute:
        if attribute.name == field.name:
            return _of_kind(attribute, field.kind), attribute
    return field.default, None


def _of_kind(attribute: onnx.AttributeProto, kind: str) -> Any:
    if kind == 'STRING':
        return attribute.s.decode('utf-8', 'replace')
    if kind in ('INTS', 'FLOATS'):
        return tuple(attribute.ints if kind == 'INTS' else attribute.floats)
    return attribute.i if kind == 'INT' else attribute.f


def text(value: str | bytes) -> str:
    """Return a name; of a damaged file protobuf gives bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode('utf-8', 'replace')


def node_name(node: onnx.NodeProto, index: int) -> str:
    """Return a node's name, or something that finds it in a listing."""
    return text(node.name) or f'{text(node.op_type) or "node"} #{index}'
