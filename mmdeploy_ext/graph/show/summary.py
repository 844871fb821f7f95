"""The content of an ONNX file, and what an edit changed of it, as plain data and as lines of text.

Works on broken files as well: it is what one looks at when a check has failed. Needs onnx and numpy only.
"""

import collections
import contextlib
import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.files import is_sparse
from mmdeploy_ext.graph.io.index import all_graphs, join_names, operator_name

SHOWN_METADATA = ('family', 'form', 'config', 'config_sha256', 'checkpoint_sha256', 'target')
"""Keys of this project's metadata, without its prefix, that are printed; the others are long tables."""
LONGEST_VALUE = 120
"""Characters of a value of the metadata that are printed."""
MAX_DEFAULTS = 8
"""Inputs with a default that are listed by name."""
MAX_NAMES = 12
"""Names of a list that are printed after an edit."""


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what is in a model as plain JSON types.

    Returns:
        A dict of

        - `kind`: 'sparse' (libspconv dialect) or 'onnx'; `producer`, `ir_version`, `opsets` (domain ->
          version), `functions` (names) and `metadata` (key -> text);
        - `inputs`, `defaults` (inputs that need not be fed) and `outputs`: dicts of `name`, `dtype`, `shape`
          ([] if it is unknown, and of a scalar) and `type` (as text, see `types.text`);
        - `nodes` (number, bodies included, functions not) and `operators` (name -> number, most first);
        - `parameters` and `bytes`: elements and size of the weights, see `parameters`; `dtypes`: name ->
          number of tensors; dtypes are ONNX's names in small letters, 'float' for float32;
    """
    graph = model.graph
    weights = list(parameters(graph))
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


def parameters(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights: initializers, also of bodies; in a file without any (Paddle) the Constant nodes.

    Of Constant nodes only float32 and float16 tensors with an axis count.
    """
    graphs = list(all_graphs(graph))
    initializers = [tensor for body in graphs for tensor in body.initializer]
    yield from initializers or (tensor for body in graphs for _, tensor in _float_constants(body))


def parameter_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return tensor name -> number of elements, of the weights of the main graph; see `parameters`.

    Constant nodes count if the main graph has no initializer.
    """
    initializers = [(tensor.name, tensor) for tensor in graph.initializer]
    return {name: math.prod(tensor.dims) for name, tensor in initializers or _float_constants(graph)}


def _float_constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the names and values of the Constant nodes that hold floating-point tensors with an axis."""
    for node in graph.node:
        for attribute in node.attribute:
            is_value = node.op_type == 'Constant' and attribute.name == 'value' and node.output
            is_float = attribute.t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
            if is_value and is_float and attribute.t.dims:
                yield node.output[0], attribute.t


def node_rows(model: onnx.ModelProto, pattern: str = '*') -> list[dict[str, Any]]:
    """Return the nodes of the main graph whose name, operator or output fits a pattern, as plain JSON types.

    `pattern` has '*', '?' and '[...]' as in `fnmatch`, and counts capitals; of an operator it fits the name
    without the domain, which `operator` of a row has.

    Returns:
        Per node `position`, `name`, `operator`, `inputs`, `outputs`, `shapes` (types of the outputs, as
        text) and `parameters` (elements of the weights that it reads).
    """
    tensor_types = types.infer(model)
    sizes = parameter_sizes(model.graph)
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
    """Yield a line per row of `node_rows`: position, operator, name, tensors read and written, parameters."""
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
    """Yield the content that `describe` returned as lines of text.

    Of this project's metadata only `SHOWN_METADATA` are among them, of other metadata all; a value is cut off
    behind `LONGEST_VALUE` characters.
    """
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


def describe_edit(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Any]:
    """Return what an edit of a model changed, as plain JSON types.

    Returns:
        A dict of `nodes` (numbers before and after, of the main graph), `operators` (op_type -> number after
        minus number before, if it is not 0), `inputs` and `outputs` (dicts of `added`, `removed` and
        `changed`, each name -> type as text, of `changed` the new one), `metadata_removed` (keys) and
        `changed` (whether the edit changed anything).
    """
    old_operators = [node.op_type for node in before.graph.node]
    counts = collections.Counter(node.op_type for node in after.graph.node)
    counts.subtract(old_operators)
    keys = {entry.key for entry in before.metadata_props}
    return dict(
        nodes=[len(old_operators), len(after.graph.node)],
        operators={name: count for name, count in sorted(counts.items()) if count},
        inputs=_changed_ends(before.graph.input, after.graph.input),
        outputs=_changed_ends(before.graph.output, after.graph.output),
        metadata_removed=sorted(keys.difference(entry.key for entry in after.metadata_props)),
        changed=before != after,
    )


def _changed_ends(
    before: Sequence[onnx.ValueInfoProto], after: Sequence[onnx.ValueInfoProto]
) -> dict[str, dict[str, str]]:
    old = {value.name: types.text(value.type) for value in before}
    new = {value.name: types.text(value.type) for value in after}
    return dict(
        added={name: text for name, text in new.items() if name not in old},
        removed={name: text for name, text in old.items() if name not in new},
        changed={name: text for name, text in new.items() if old.get(name, text) != text},
    )


def edit_lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield the changes that `describe_edit` returned as lines of text."""
    if not content['changed']:
        yield 'nothing changed: the file is that way already'
        return
    old, new = content['nodes']
    if content['operators']:
        counts = [f'{name} {count:+d}' for name, count in content['operators'].items()]
        yield f'nodes: {old} -> {new} ({join_names(counts, MAX_NAMES)})'
    for side in ('inputs', 'outputs'):
        for change, entries in content[side].items():
            if entries:
                texts = [f'{name} {text}' for name, text in entries.items()]
                yield f'{side} {change}: {join_names(texts, MAX_NAMES)}'
    if content['metadata_removed']:
        keys = [key for key in content['metadata_removed'] if not key.startswith(PREFIX)]
        if len(keys) < len(content['metadata_removed']):
            keys.append(f'{PREFIX}*')
        names = join_names(keys, MAX_NAMES)
        yield f'metadata removed: {names}: it describes the whole graph that was exported'
