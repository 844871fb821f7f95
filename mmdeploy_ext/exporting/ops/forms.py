"""The forms of operator nodes after the export: standard operators, local functions, Python, plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from mmdeploy_ext.exporting.exporter import Operators
from mmdeploy_ext.exporting.ops.bodies import function_body
from mmdeploy_ext.exporting.ops.exporters import translations
from mmdeploy_ext.exporting.ops.operator import DOMAIN, current_form, operator_of
from mmdeploy_ext.exporting.ops.python_nodes import python_body
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import refill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmdeploy_ext.exporting.ops.operator import Operator


def finish(model: onnx.ModelProto, exporter: str, opset: int) -> onnx.ModelProto:
    """Give every operator node of an exported model the form that `operators_as` chose.

    - No node of the domain `mm2onnx`: the model is returned as it is.
    - 'plugin': nodes with a plugin are renamed, the others become standard operators.

    Raises:
        ExportError: a node of the domain that no registered operator stands for.
    """
    if not any(True for _ in operator_nodes(model.graph)):
        return model
    form = current_form()
    if exporter == 'torchscript':
        _tell_shapes(model, opset)
    if form == 'plugin':
        for node, operator in list(operator_nodes(model.graph)):
            if operator.plugin is not None:
                _to_plugin(node, operator, model)
    if form == 'python':
        return _with_functions(model, opset, lambda *args: python_body(*args, opset))
    model = _with_functions(model, opset, lambda *args: function_body(*args, opset, exporter, ALL))
    return model if form == 'function' else to_standard(model)


def _tell_shapes(model: onnx.ModelProto, opset: int) -> None:
    """Write the shapes of the outputs that follow from the operators' standard form.

    TorchScript knows no shape behind a node that is not of ONNX and invents names for all of its axes, where
    torch.export tells the letters and sizes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField('shape')
    copy.graph.ClearField('value_info')
    copy = _with_functions(copy, opset, lambda *args: function_body(*args, opset, 'torchscript', ALL))
    found = types.infer(to_standard(copy))
    for value in model.graph.output:
        stated = value.type.tensor_type.shape.dim
        known = found[value.name].tensor_type.shape.dim if value.name in found else ()
        if len(stated) != len(known):
            continue
        for old, new in zip(stated, known, strict=True):
            if new.WhichOneof('value'):
                old.CopyFrom(new)


def operator_nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, Operator]]:
    """Yield the nodes of this domain with their operators, sub-graphs included.

    Raises:
        ExportError: a node whose operator is not registered.
    """
    for node in graph.node:
        if node.domain == DOMAIN:
            yield node, operator_of(node.name, node.op_type)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField('g') else []) + list(attribute.graphs):
                yield from operator_nodes(inner)


def to_standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its local functions written out; as it is where it has none."""
    from onnx import inliner

    if not model.functions:
        return model
    inlined = inliner.inline_local_functions(model)
    refill(inlined, opset_import=[entry for entry in inlined.opset_import if entry.domain != DOMAIN])
    return inlined


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return attribute -> value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _with_functions(
    model: onnx.ModelProto, opset: int, body: Callable[[Operator, str, dict[str, Any]], onnx.FunctionProto]
) -> onnx.ModelProto:
    """Add one function per operator and set of attributes; nodes of a second set get a name of their own."""
    names: dict[tuple[str, str], str] = {}
    for node, operator in list(operator_nodes(model.graph)):
        attributes = node_attributes(node)
        key = (operator.name, repr(sorted(attributes.items())))
        if key not in names:
            used = sum(name == operator.name for name, _ in names)
            names[key] = f'{operator.name}{used + 1}' if used else operator.name
            function = body(operator, names[key], attributes)
            _declare(function, attributes)
            model.functions.append(function)
            _import(model, function)
        node.op_type = names[key]
    return model


def _declare(function: onnx.FunctionProto, attributes: dict[str, Any]) -> None:
    """Let a node keep attributes that the body has filled in, for readers of the graph."""
    function.attribute.extend(name for name in attributes if name not in function.attribute)


def _import(model: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    known = {entry.domain for entry in model.opset_import}
    needed = [helper.make_opsetid(DOMAIN, 1), *function.opset_import]
    model.opset_import.extend(entry for entry in needed if entry.domain not in known)
    model.ir_version = max(model.ir_version, 8)  # functions exist from IR 8 on


def _to_plugin(node: onnx.NodeProto, operator: Operator, model: onnx.ModelProto) -> None:
    plugin, given = operator.plugin, node_attributes(node)
    fields = {target: given[name] for name, target in plugin.attributes.items()}
    fields |= dict(plugin.constants, plugin_version=plugin.version, plugin_namespace=plugin.namespace)
    node.op_type, node.domain = plugin.op_type, plugin.domain
    node.ClearField('attribute')
    node.attribute.extend(helper.make_attribute(name, value) for name, value in fields.items())
    domains = {entry.domain for entry in model.opset_import}
    if plugin.domain not in domains:
        model.opset_import.append(helper.make_opsetid(plugin.domain, 1))


ALL = Operators(translations, finish)
"""What all registered operators add to an export."""
