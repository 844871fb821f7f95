"""The ONNX local function of an operator: from its text, or by exporting its traceable form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import helper

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.exporting.exporter import export_module
from mmdeploy_ext.exporting.ops.exporters import attribute_values
from mmdeploy_ext.exporting.ops.operator import DOMAIN, operators_as

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.exporting.exporter import Operators
    from mmdeploy_ext.exporting.ops.operator import Operator


class _Traceable(torch.nn.Module):
    """The traceable form with its attributes filled in."""

    def __init__(self, operator: Operator, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.form = operator.traceable
        self.attributes = tuple(attribute_values(operator, attributes).values())

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.form(*tensors, *self.attributes)


def function_body(
    operator: Operator, name: str, attributes: Mapping[str, Any], opset: int, exporter: str, inner: Operators
) -> onnx.FunctionProto:
    """Return the local function `mm2onnx.<name>` that does what the operator does.

    Args:
        operator: the operator.
        name: of the function; several attribute values of one traceable operator are several functions.
        attributes: of the node; a traceable form has them filled in, a text refers to them (`@name`).
        opset: of the file.
        exporter: that exports the traceable form.
        inner: what operators that the traceable form itself calls add to its export.

    Raises:
        ExportError: the text is no ONNX function.
    """
    if operator.body is not None:
        function = _parse(operator, opset)
        function.name = name
        return function
    return _exported(operator, name, attributes, opset, exporter, inner)


def _parse(operator: Operator, opset: int) -> onnx.FunctionProto:
    text = f'<opset_import: ["": {opset}], domain: "{DOMAIN}">\n{operator.body}'
    try:
        function = onnx.parser.parse_function(text)
    except onnx.parser.ParseError as error:
        raise ExportError(f'operator {operator.name}: its ONNX text cannot be read: {error}') from error
    if function.name != operator.name or tuple(function.output) != operator.outputs:
        raise ExportError(
            f'operator {operator.name}: its ONNX text defines {function.name} with outputs '
            f'{list(function.output)}; expected {operator.name} with {list(operator.outputs)}'
        )
    return function


def _exported(
    operator: Operator, name: str, attributes: Mapping[str, Any], opset: int, exporter: str, inner: Operators
) -> onnx.FunctionProto:
    with operators_as('standard'):
        model = export_module(
            _Traceable(operator, attributes).eval(),
            operator.example(),
            operators=inner,
            exporter=exporter,
            opset=opset,
            input_names=tuple(operator.inputs),
            output_names=operator.outputs,
            dynamic={key: _letters(axes) for key, axes in operator.inputs.items()},
        )
    return graph_to_function(model, name)


def _letters(axes: str) -> dict[int, str]:
    return {index: axis for index, axis in enumerate(axes.split()) if not axis.isdigit()}


def graph_to_function(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    """Return a model's graph as the local function `mm2onnx.<name>`; initializers become constants."""
    graph = model.graph
    constants = [
        helper.make_node('Constant', [], [tensor.name], name=f'{name}/{tensor.name}', value=tensor)
        for tensor in graph.initializer
    ]
    return helper.make_function(
        DOMAIN,
        name,
        [value.name for value in graph.input],
        [value.name for value in graph.output],
        [*constants, *graph.node],
        model.opset_import,
    )
