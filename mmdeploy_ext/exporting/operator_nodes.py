"""The forms of operator nodes after the export: standard operators, local functions, plugins."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import helper, inliner

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import all_nodes, node_attributes, refill
from mmdeploy_ext.graphs.script import function_of
from mmdeploy_ext.upstream.operators.operator import (
    DOMAIN,
    Operator,
    attribute_values,
    current_form,
    operator_of,
    operators_as,
)

Body = Callable[[Operator, str, dict[str, Any]], onnx.FunctionProto]
"""(operator, name of the function, attributes) -> the function."""


def finish(
    model: onnx.ModelProto, exporter: str, opset: int, export_module: Callable[..., onnx.ModelProto]
) -> onnx.ModelProto:
    """Give every operator node of an exported model the form that `operators_as` chose.

    - 'standard': standard operators, inlined.
    - 'function': one local function for each operator and set of attributes.
    - 'plugin': TensorRT's nodes where a plugin exists, else standard operators.

    `model` is changed; `export_module` is `export.export_module`.
    """
    nodes = list(operator_nodes(model))
    if not nodes:
        return model
    form, written = current_form(), {}
    export = functools.partial(export_module, exporter=exporter, opset=opset)

    def body(operator: Operator, name: str, attributes: Mapping[str, Any]) -> onnx.FunctionProto:
        key = operator.name, name, repr(sorted(attributes.items()))
        if key not in written:  # an export per body, of which the shapes of the outputs need the same ones
            written[key] = function_body(operator, name, attributes, opset, export)
        return copy.deepcopy(written[key])

    if exporter == 'torchscript':
        _write_output_shapes(model, body)
    if form == 'plugin':
        for node, operator in nodes:
            plugin = operator.plugin
            if plugin is None:
                continue
            attributes = node_attributes(node)
            fields = {target: attributes[name] for name, target in plugin.attributes.items()}
            fields |= dict(plugin.constants, plugin_version=plugin.version, plugin_namespace=plugin.namespace)
            node.op_type, node.domain = plugin.op_type, plugin.domain
            refill(node, attribute=[helper.make_attribute(name, value) for name, value in fields.items()])
            _import(model, helper.make_opsetid(plugin.domain, 1))
    model = _with_functions(model, body)
    return model if form == 'function' else to_standard(model)


def _write_output_shapes(model: onnx.ModelProto, body: Body) -> None:
    slim = types.skeleton(model)
    for value in slim.graph.output:
        value.type.tensor_type.ClearField('shape')
    slim.graph.ClearField('value_info')
    slim = _with_functions(slim, body)
    inferred = types.infer(to_standard(slim))
    for value in model.graph.output:
        stated = value.type.tensor_type.shape.dim
        sizes = inferred[value.name].tensor_type.shape.dim if value.name in inferred else ()
        if len(stated) != len(sizes):
            continue
        for old, new in zip(stated, sizes, strict=True):
            if new.WhichOneof('value'):
                old.CopyFrom(new)


def operator_nodes(
    part: onnx.ModelProto | onnx.FunctionProto,
) -> Iterator[tuple[onnx.NodeProto, Operator]]:
    """Yield the nodes of the domain `mm2onnx`, bodies and functions included, with their operators."""
    for node in all_nodes(part):
        if node.domain == DOMAIN:
            yield node, operator_of(node.name, node.op_type)


def to_standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a new model with all its local functions inlined; without any, the model itself unchanged."""
    if not model.functions:
        return model
    inlined = inliner.inline_local_functions(types.skeleton(model))  # which would write and read all weights
    result = copy.deepcopy(model)
    result.ClearField('functions')
    refill(result.graph, node=inlined.graph.node, value_info=inlined.graph.value_info)
    refill(result, opset_import=[entry for entry in inlined.opset_import if entry.domain != DOMAIN])
    return result


def _with_functions(model: onnx.ModelProto, body: Body) -> onnx.ModelProto:
    names: dict[tuple[str, str], str] = {}
    _name_functions(model, model, names, body)
    return model


def _name_functions(
    model: onnx.ModelProto,
    part: onnx.ModelProto | onnx.FunctionProto,
    names: dict[tuple[str, str], str],
    body: Body,
) -> None:
    for node, operator in list(operator_nodes(part)):
        attributes = node_attributes(node)
        key = (operator.name, repr(sorted(attributes.items())))
        if key not in names:
            used = sum(name == operator.name for name, _ in names)
            names[key] = f'{operator.name}{used + 1}' if used else operator.name
            function = body(operator, names[key], attributes)
            # a node keeps attributes that the body has filled in, for readers of the graph
            function.attribute.extend(name for name in attributes if name not in function.attribute)
            _name_functions(model, function, names, body)
            model.functions.append(function)
            _import(model, helper.make_opsetid(DOMAIN, 1), *function.opset_import)
        node.op_type = names[key]
        _import(part, helper.make_opsetid(DOMAIN, 1))


def _import(part: onnx.ModelProto | onnx.FunctionProto, *needed: onnx.OperatorSetIdProto) -> None:
    domains = {entry.domain for entry in part.opset_import}
    part.opset_import.extend(entry for entry in needed if entry.domain not in domains)


class _Traceable(torch.nn.Module):
    def __init__(self, operator: Operator, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.form = operator.traceable
        self.attributes = tuple(attribute_values(operator, attributes).values())

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.form(*tensors, *self.attributes)


def function_body(
    operator: Operator,
    name: str,
    attributes: Mapping[str, Any],
    opset: int,
    export: Callable[..., onnx.ModelProto],
) -> onnx.FunctionProto:
    """Return the local function `mm2onnx.<name>` that computes the operator.

    `export` is `export.export_module` with exporter and opset, for the traceable form.
    """
    if operator.body is None:
        return _exported(operator, name, attributes, export)
    try:
        function = function_of(operator.body, DOMAIN, name, opset)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ExportError(f'operator {operator.name}: onnxscript cannot read its body: {error}') from error
    if tuple(function.output) != operator.outputs:
        raise ExportError(
            f'operator {operator.name}: its body returns {list(function.output)}; '
            f'expected {list(operator.outputs)}'
        )
    return function


def _exported(
    operator: Operator, name: str, attributes: Mapping[str, Any], export: Callable[..., onnx.ModelProto]
) -> onnx.FunctionProto:
    with operators_as('standard'):
        model = export(
            _Traceable(operator, attributes).eval(),
            operator.example(),
            input_names=tuple(operator.inputs),
            output_names=operator.outputs,
            dynamic={
                key: {index: axis for index, axis in enumerate(axes.split()) if not axis.isdigit()}
                for key, axes in operator.inputs.items()
            },
        )
    graph = model.graph
    constants = [
        helper.make_node('Constant', [], [tensor.name], name=f'{name}/{tensor.name}', value=tensor)
        for tensor in graph.initializer
    ]
    ends = ([value.name for value in values] for values in (graph.input, graph.output))
    return helper.make_function(DOMAIN, name, *ends, [*constants, *graph.node], model.opset_import)
