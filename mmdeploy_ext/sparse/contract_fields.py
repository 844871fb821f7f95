"""What is known of the nodes of a libspconv file: attributes by operator, what is wrong, a node as read.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). Needs numpy only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

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
        rule: its short name, e.g. 'missing-bias'.
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
        *(Field(name, 'INTS', (), ERROR) for name in ('kernel_size', 'stride', 'padding', 'dilation')),
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
NUMBERS = dict(ndim=3, in_channels=0, out_channels=0, groups=1, transposed=0)
LISTS = ('output_padding', 'input_spatial_shape', 'output_spatial_shape', 'output_shape')
WRITTEN = (
    *(Field(name, 'INT', default) for name, default in NUMBERS.items()),
    *(Field(name, 'INTS', ()) for name in LISTS),
)
"""Attributes of a convolution that exporters write and the parser never reads."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One node as the engine knows it.

    Attributes:
        name: of the node; its operator and index when it has none.
        inputs: names of tensors, without the initializers.
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
