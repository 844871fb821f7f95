"""How an `Operator` becomes one node: a symbolic for TorchScript, a translation for torch.export."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.exporting.ops.operator import DOMAIN, OPERATORS, Operator

TYPES = dict(f=(float, 'FLOAT'), i=(int, 'INT'), b=(bool, 'INT'), s=(str, 'STRING'))
"""Letter of an attribute's type, as `parse_args` of torch.onnx and `g.op` write it -> in Python, in ONNX."""


def attribute_letters(operator: Operator) -> dict[str, str]:
    """Return attribute -> letter of its type, the first one of its name in the schema."""
    return {argument.name: str(argument.type)[0] for argument in _attributes(operator)}


def attribute_values(operator: Operator, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a node as the eager form takes them, in its order.

    ONNX keeps a bool as an integer and a text as bytes; what the node leaves out has its default.
    """
    values = {**_default_values(operator), **given}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    return {name: TYPES[letter][0](plain[name]) for name, letter in attribute_letters(operator).items()}


def _attributes(operator: Operator) -> Sequence[torch.Argument]:
    return operator.overload._schema.arguments[len(operator.inputs) :]


def _default_values(operator: Operator) -> dict[str, Any]:
    return {one.name: one.default_value for one in _attributes(operator) if one.has_default_value()}


def register(operator: Operator) -> Operator:
    """Make an operator known to PyTorch and to both exporters, and return it; two may not have one name."""
    if operator.name in OPERATORS:
        raise ExportError(f'operator {operator.name} is registered twice')
    custom = torch.library.custom_op(operator.qualified, operator.eager, mutates_args=())
    custom.register_fake(operator.shapes or operator.traceable)
    OPERATORS[operator.name] = operator
    _register_torchscript(operator)
    return operator


def _register_torchscript(operator: Operator) -> None:
    """Register a symbolic that writes the node; types and ranks come from the traced example."""
    from torch.onnx import symbolic_helper

    letters = attribute_letters(operator)
    count = len(operator.inputs)

    def symbolic(g: Any, *args: Any) -> Any:
        values = zip(letters.items(), args[count:], strict=True)
        attributes = {f'{name}_{"i" if kind == "b" else kind}': value for (name, kind), value in values}
        node = f'{DOMAIN}::{operator.name}'
        found = g.op(node, *args[:count], outputs=len(operator.outputs), **attributes)
        written = (found,) if len(operator.outputs) == 1 else found
        for value, traced in zip(written, g.original_node.outputs(), strict=True):
            kind = traced.type()
            value.setType(kind.with_sizes([None] * len(kind.sizes())))
        return found

    # `parse_args` counts parameters by their names
    symbolic.__signature__ = _signature('g', *operator.inputs, *letters)
    parsed = symbolic_helper.parse_args(*'v' * count, *letters.values())(symbolic)
    torch.onnx.register_custom_op_symbolic(operator.qualified, parsed, 9)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return `custom_translation_table` of the dynamo exporter for every operator."""
    return {operator.overload: _translation(operator) for operator in OPERATORS.values()}


def _translation(operator: Operator) -> Callable[..., Any]:
    from onnxscript import values

    node = values.Op(values.Opset(DOMAIN, 1), operator.name, _schema(operator))
    kinds = {name: TYPES[letter][0] for name, letter in attribute_letters(operator).items()}
    defaults = _default_values(operator)  # torch.export leaves out what equals them
    count = len(operator.inputs)

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(kinds, args[count:], strict=False))
        return node(*args[:count], **{**defaults, **given, **kwargs})

    # the exporter tells inputs from attributes by it
    translate.__signature__ = _signature(*operator.inputs, *kinds)
    translate.__annotations__ = kinds
    return translate


def _signature(*names: str) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind) for name in names])


def _schema(operator: Operator) -> onnx.defs.OpSchema:
    make = onnx.defs.OpSchema
    anything = list(onnx.defs.get_schema('Identity', 16).type_constraints[0].allowed_type_strs)
    inputs = [(name, f'T{index}') for index, name in enumerate(operator.inputs)]
    outputs = [(name, f'U{index}') for index, name in enumerate(operator.outputs)]
    return make(
        operator.name,
        DOMAIN,
        1,
        inputs=[make.FormalParameter(*pair) for pair in inputs],
        outputs=[make.FormalParameter(*pair) for pair in outputs],
        type_constraints=[(letter, anything, '') for _, letter in (*inputs, *outputs)],
        attributes=[
            make.Attribute(name, getattr(make.AttrType, TYPES[kind][1]))
            for name, kind in attribute_letters(operator).items()
        ],
    )
