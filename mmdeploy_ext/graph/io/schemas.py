"""What ONNX says of an operator in an opset."""

import functools
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper


def opsets_of(model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    """Return domain -> version; ONNX's own domain is ''."""
    return {'' if entry.domain == 'ai.onnx' else entry.domain: entry.version for entry in model.opset_import}


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """Return the schema of a node's operator in these opsets, None when ONNX has none."""
    domain = '' if node.domain == 'ai.onnx' else node.domain
    return _schema(node.op_type, domain, opsets.get(domain, 1))


@functools.cache
def _schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def defaults_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> dict[str, Any]:
    """Return attribute name -> default of a node's operator."""
    schema = schema_of(node, opsets)
    entries = [entry.default_value for entry in schema.attributes.values()] if schema else []
    return {entry.name: helper.get_attribute_value(entry) for entry in entries if entry.name}
