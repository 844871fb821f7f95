"""How Autoware's nodes bind the tensors of a file: by name or by index, sizes and types.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_tensorrt_common and the nodes (behaviour, in
own words). Tensor addresses are set without a check of types: a wrong type is read as other numbers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.core.violations import ERROR, WARNING, Violation
from mmdeploy_ext.runtime.contract_files import Ends, Shape, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx


DOMAIN = 'autoware'
"""Of the plug-ins' operators."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """One tensor that a node reads or writes.

    Attributes:
        name: that it is looked up by, or that is customary.
        shape: None for what the node does not state.
        kinds: types in ONNX's words that are read as they are meant.
        why: added to the message of a wrong type.
    """

    name: str
    shape: Shape
    kinds: tuple[str, ...] = ('FLOAT',)
    why: str = ''


def by_index(file: str, ends: Ends, wanted: Sequence[Bound], inputs: int) -> Iterator[Violation]:
    """Yield what a node that counts tensors would read wrongly; names are free, but not in another order.

    The first `inputs` of those that are wanted are inputs.
    """
    names = [*ends.inputs, *ends.outputs]
    if (len(ends.inputs), len(names)) != (inputs, len(wanted)):
        said = (
            f'{file} has {len(ends.inputs)} inputs and {len(ends.outputs)} outputs, expected {inputs} and '
            f'{len(wanted) - inputs}; the node takes {", ".join(one.name for one in wanted)} by index'
        )
        yield Violation(file, '', 'count', said)
        return
    customary = [one.name for one in wanted]
    for place, (name, one) in enumerate(zip(names, wanted, strict=True)):
        if name in customary and customary.index(name) != place:
            said = f'{file}: {name} is tensor {place}, where the node takes {one.name}; it is bound by index'
            yield Violation(file, name, 'order', said)
        yield from tensor_rules(file, name, ends, one)


def by_name(
    file: str, ends: Ends, inputs: Sequence[Bound], outputs: Sequence[Bound], *, exact: bool, why: str
) -> Iterator[Violation]:
    """Yield what a node that looks tensors up by name would miss or read wrongly.

    With `exact` other outputs are refused, too; `why` is what becomes of a name that is not there.
    """
    fed, read = 'that the node feeds nothing: it is never written', 'that the node does not know'
    for side, wanted, there, other in (
        ('input', inputs, ends.inputs, fed),
        ('output', outputs, ends.outputs, read if exact else ''),
    ):
        for one in wanted:
            if one.name in there:
                yield from tensor_rules(file, one.name, ends, one)
            else:
                said = f'{file} has no {side} {one.name!r}, {why}; there are {", ".join(there) or "none"}'
                yield Violation(file, one.name, 'name', said)
        for name in there:
            if other and name not in {one.name for one in wanted}:
                yield Violation(file, name, 'extra', f'{file} has an {side} {name!r} {other}')


def tensor_rules(file: str, name: str, ends: Ends, wanted: Bound) -> Iterator[Violation]:
    """Yield a type or size that is not what a node has memory for; an axis that is not fixed may be any."""
    shape, kind = ends.shapes[name], ends.kinds[name]
    if kind not in wanted.kinds:
        said = f'{file}: {name} is {kind}, expected {" or ".join(wanted.kinds)}; the node does not check it'
        yield Violation(file, name, 'type', f'{said}: {wanted.why}' if wanted.why else said)
    fits = len(shape) == len(wanted.shape) and all(
        own is None or size is None or own == size for own, size in zip(shape, wanted.shape, strict=True)
    )
    if not fits:
        said = f'{file}: {name} is {shape_text(shape)}, expected {shape_text(wanted.shape)}'
        yield Violation(file, name, 'shape', said)


def fixed_rules(file: str, ends: Ends) -> Iterator[Violation]:
    """Yield tensors with axes that are not fixed, for nodes that give no profile."""
    for name, shape in ends.shapes.items():
        if None in shape:
            said = f'{file}: {name} is {shape_text(shape)}; the node gives no sizes: export it static'
            yield Violation(file, name, 'dynamic', said)


def graph_rules(
    file: str, model: onnx.ModelProto, plugins: Mapping[str, Sequence[str]]
) -> Iterator[Violation]:
    """Yield operators that TensorRT does not have in a node, and weights of a precision that it makes itself.

    `plugins`: operator of `DOMAIN` that the node loads -> attributes that its plug-in counts on.
    """
    from onnx import TensorProto

    from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS

    for node in model.graph.node:
        if node.domain in DEFAULT_DOMAINS:
            continue
        own, called = f'{node.domain}::{node.op_type}', f'{file}: {node.name or node.op_type}'
        if node.domain != DOMAIN or node.op_type not in plugins:
            said = f'{called} is {own}; the plug-ins that the node loads: {", ".join(plugins) or "none"}'
            yield Violation(file, node.name, 'operator', said)
            continue
        there = {entry.name for entry in node.attribute}
        for name in plugins[node.op_type]:
            if name not in there:
                said = f'{called} has no attribute {name}; the plug-in {own} is not made without it'
                yield Violation(file, node.name, 'attribute', said)
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        said = f'{file} holds float16 weights; the nodes build fp16 from float32 files by trt_precision'
        yield Violation(file, '', 'precision', said, WARNING)


def has_errors(violations: Sequence[Violation]) -> bool:
    """Return whether a folder has errors already, so that its graphs need not be tried."""
    return any(violation.severity == ERROR for violation in violations)
