"""The content of an ONNX file as plain data and as lines of text; broken files, too. Needs onnx only."""

import collections
import contextlib
import fnmatch
import math
from collections.abc import Iterator
from typing import Any

import onnx

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.graphs.io.index import all_graphs, operator_name
from mmdeploy_ext.spec.metadata import PREFIX

SHOWN_METADATA = ('family', 'form', 'config', 'config_sha256', 'checkpoint_sha256', 'target')
"""Keys of this project's metadata, without its prefix, that are printed; the others are long tables."""
LONGEST_VALUE = 120
"""Printed characters of a metadata value."""
MAX_DEFAULTS = 8
"""Listed inputs with a default."""


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Describe a model in plain JSON types; dtypes are ONNX's names in small letters ('float': float32).

    - `kind`: 'sparse' (libspconv dialect) or 'onnx'; `producer`, `ir_version`, `opsets` (domain -> version),
      `functions` (names), `metadata` (key -> text);
    - `inputs`, `defaults` (inputs with a default), `outputs`: dicts of `name`, `dtype`, `shape` ([]: unknown
      or scalar) and `type` (see `types.text`);
    - `nodes` (number, with bodies, without functions), `operators` (name -> number, most first);
    - `parameters`, `bytes` of the initializers, with bodies; `dtypes`: name -> number of tensors.
    """
    graph = model.graph
    weights = [tensor for body in all_graphs(graph) for tensor in body.initializer]
    fixed = {tensor.name for tensor in graph.initializer}  # up to IR 3 each weight is an input, too
    sizes = [(math.prod(tensor.dims), tensor.data_type) for tensor in weights]
    total_bytes = 0
    for count, data_type in sizes:
        with contextlib.suppress(KeyError, ValueError):  # the size of a type is unknown
            total_bytes += types.byte_size(data_type, count)
    nodes = [node for body in all_graphs(graph) for node in body.node]
    return dict(
        kind='sparse' if is_sparse(model) else 'onnx',
        producer=f'{model.producer_name} {model.producer_version}'.strip(),
        ir_version=model.ir_version,
        opsets={entry.domain or 'ai.onnx': entry.version for entry in model.opset_import},
        inputs=[_describe_value(value) for value in graph.input if value.name not in fixed],
        defaults=[_describe_value(value) for value in graph.input if value.name in fixed],
        outputs=[_describe_value(value) for value in graph.output],
        nodes=len(nodes),
        operators=dict(collections.Counter(operator_name(node) for node in nodes).most_common()),
        functions=[f'{entry.domain}.{entry.name}' for entry in model.functions],
        parameters=sum(size for size, _ in sizes),
        bytes=total_bytes,
        dtypes=dict(collections.Counter(types.dtype(data_type) for _, data_type in sizes)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dtype, shape = types.dtype(value.type.tensor_type.elem_type), types.shape(value.type) or []
    return dict(name=value.name, dtype=dtype, shape=shape, type=types.text(value.type))


def node_rows(model: onnx.ModelProto, pattern: str = '*') -> list[dict[str, Any]]:
    """Return the main graph's nodes with a matching name, operator or output, as plain JSON types.

    Keys: `position`, `name`, `operator`, `inputs`, `outputs`, `shapes` (types of the outputs, as text),
    `parameters` (elements of the weights).
    """
    tensor_types = types.infer(model)
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    return [
        dict(
            position=position,
            name=node.name,
            operator=operator_name(node),
            inputs=list(node.input),
            outputs=list(node.output),
            shapes=[types.text(tensor_types.get(name)) for name in node.output],
            parameters=sum(sizes.get(name, 0) for name in set(node.input)),
        )
        for position, node in enumerate(model.graph.node)
        if any(fnmatch.fnmatchcase(word, pattern) for word in (node.name, node.op_type, *node.output))
    ]


def node_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line per row of `node_rows`."""
    cells = []
    for row in rows:
        outputs = map(' '.join, zip(row['outputs'], row['shapes'], strict=True))
        cost = f'  {row["parameters"]:,} par' if row['parameters'] else ''
        text = f'{", ".join(row["inputs"])} -> {", ".join(outputs)}{cost}'
        cells.append((f'#{row["position"]}', row['operator'], row['name'] or '-', text))
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
    for position, operator, name, text in cells:
        yield f'{position:<{widths[0]}}  {operator:<{widths[1]}}  {name:<{widths[2]}}  {text}'


def lines(content: dict[str, Any]) -> Iterator[str]:
    yield f'inputs: {_join_values(content["inputs"])}'
    yield f'outputs: {_join_values(content["outputs"])}'
    defaults = content['defaults']
    if defaults:
        text = _join_values(defaults) if len(defaults) <= MAX_DEFAULTS else f'{len(defaults)}, the weights'
        yield f'inputs with a default: {text}'
    opsets = ', '.join(f'{domain} {version}' for domain, version in content['opsets'].items())
    yield f'opset: {opsets or "none"}; IR {content["ir_version"]}; written by {content["producer"] or "?"}'
    dtypes = ', '.join(f'{count} {dtype}' for dtype, count in content['dtypes'].items()) or 'no initializers'
    yield f'parameters: {content["parameters"]:,} in {content["bytes"] / 1e6:.2f} MB ({dtypes})'
    operators = ', '.join(f'{name} {count}' for name, count in content['operators'].items())
    yield f'operators: {content["nodes"]}: {operators}'
    if functions := content['functions']:
        yield f'functions: {len(functions)}: {", ".join(functions)}'
    for key, value in content['metadata'].items():
        if not key.startswith(PREFIX) or key.removeprefix(PREFIX) in SHOWN_METADATA:
            text = ' '.join(value.split())
            yield f'{key}: {text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."}'


def _join_values(values: list[dict[str, Any]]) -> str:
    return ', '.join(f'{value["name"]} {value["type"]}' for value in values) or 'none'
