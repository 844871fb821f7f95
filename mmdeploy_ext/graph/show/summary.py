"""What is in an ONNX file, as plain data and as lines: sparse graphs node by node, ordinary ones in summary.

Works on broken files as well: it is what one looks at when a check has failed. Needs onnx and numpy only.
"""

import collections
import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.graph import flops
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.graph.io.index import all_graphs, join_names, operator_name

SHOWN_METADATA = ('family', 'form', 'config', 'config_sha256', 'checkpoint_sha256', 'target')
LONGEST_VALUE = 120
MOST_DEFAULTS = 8
"""Inputs with a default that are listed by name."""


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what is in a model as plain JSON types.

    Returns:
        `kind` ('sparse' or 'onnx'), `inputs`, `defaults` (inputs that need not be fed), `outputs`, `opsets`,
        `producer`, `nodes`, `operators` (name -> count), `functions`, `parameters`, `bytes`, `metadata`; but
        of a sparse graph also `flops` and `flops_unknown` (nodes whose shapes are open).
    """
    graph = model.graph
    weights = list(parameters(graph))
    fixed = {tensor.name for tensor in graph.initializer}  # up to IR 3 each weight is an input, too
    sizes = [(math.prod(tensor.dims), tensor.data_type) for tensor in weights]
    nodes = [node for body in all_graphs(graph) for node in body.node]
    content = dict(
        kind='sparse' if is_sparse(model) else 'onnx',
        producer=f'{model.producer_name} {model.producer_version}'.strip(),
        ir_version=model.ir_version,
        opsets={entry.domain or 'ai.onnx': entry.version for entry in model.opset_import},
        inputs=[_value(entry) for entry in graph.input if entry.name not in fixed],
        defaults=[_value(entry) for entry in graph.input if entry.name in fixed],
        outputs=[_value(entry) for entry in graph.output],
        nodes=len(nodes),
        operators=dict(collections.Counter(operator_name(node) for node in nodes).most_common()),
        functions=[f'{entry.domain}.{entry.name}' for entry in model.functions],
        parameters=sum(size for size, _ in sizes),
        bytes=sum(size * _item_bytes(kind) for size, kind in sizes),
        dtypes=dict(collections.Counter(types.dtype(kind) for _, kind in sizes)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )
    if content['kind'] == 'onnx':
        costs = list(flops.count(model).values())
        content.update(flops=sum(filter(None, costs)), flops_unknown=costs.count(None))
    return content


def parameters(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights: initializers, also of bodies; in a file without any (Paddle) the Constant nodes."""
    graphs = list(all_graphs(graph))
    stored = [tensor for body in graphs for tensor in body.initializer]
    yield from stored or (tensor for body in graphs for _, tensor in _constants(body))


def parameter_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return tensor name -> elements of the weights of the main graph."""
    stored = [(tensor.name, tensor) for tensor in graph.initializer]
    return {name: math.prod(tensor.dims) for name, tensor in stored or _constants(graph)}


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the names and values of the Constant nodes that hold floating-point tensors with an axis."""
    for node in (node for node in graph.node if node.op_type == 'Constant' and node.output):
        for entry in node.attribute:
            floating = entry.t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
            if entry.name == 'value' and entry.t.dims and floating:
                yield node.output[0], entry.t


def node_rows(model: onnx.ModelProto, pattern: str = '*') -> list[dict[str, Any]]:
    """Return the nodes of the main graph whose name, operator or output fits a pattern, as plain JSON types.

    Returns:
        Per node `position`, `name`, `operator`, `inputs`, `outputs`, `shapes` (of the outputs), `parameters`
        (that it reads) and `flops` (None when not known, 0 when not counted).
    """
    kinds = types.infer(model)
    cost, sizes = flops.count(model, kinds), parameter_sizes(model.graph)
    return [
        dict(
            position=position,
            name=node.name,
            operator=operator_name(node),
            inputs=list(node.input),
            outputs=list(node.output),
            shapes=[types.text(kinds.get(name)) for name in node.output],
            parameters=sum(sizes.get(name, 0) for name in set(node.input)),
            flops=cost.get(position, 0),
        )
        for position, node in enumerate(model.graph.node)
        if any(fnmatch.fnmatchcase(word, pattern) for word in (node.name, node.op_type, *node.output))
    ]


def node_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line per node: position, operator, name, what it reads, what it writes, what it costs."""
    cells = []
    for row in rows:
        outputs = map(' '.join, zip(row['outputs'], row['shapes'], strict=True))
        costs = [f'{row["parameters"]:,} par'] if row['parameters'] else []
        costs += [flops.text(row['flops'])] if row['flops'] != 0 else []
        text = f'{", ".join(row["inputs"])} -> {", ".join(outputs)}  {", ".join(costs)}'.rstrip()
        cells.append((f'#{row["position"]}', row['operator'], row['name'] or '-', text))
    widths = [max((len(row[at]) for row in cells), default=0) for at in range(3)]
    for place, kind, name, text in cells:
        yield f'{place:<{widths[0]}}  {kind:<{widths[1]}}  {name:<{widths[2]}}  {text}'


def lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield what `describe` found as lines of text."""
    for name in ('inputs', 'outputs'):
        yield f'{name}: {_values_line(content[name])}'
    if (defaults := content.get('defaults', ())) and len(defaults) <= MOST_DEFAULTS:
        yield f'inputs with a default: {_values_line(defaults)}'
    elif defaults:
        yield f'inputs with a default: {len(defaults)}, the weights'
    opsets = ', '.join(f'{domain} {version}' for domain, version in content['opsets'].items())
    yield f'opset: {opsets or "none"}; IR {content["ir_version"]}; written by {content["producer"] or "?"}'
    dtypes = ', '.join(f'{count} {dtype}' for dtype, count in content['dtypes'].items()) or 'no initializers'
    yield f'parameters: {content["parameters"]:,} in {content["bytes"] / 1e6:.2f} MB ({dtypes})'
    operators = ', '.join(f'{name} {count}' for name, count in content['operators'].items())
    yield f'operators: {content["nodes"]}: {operators}'
    if functions := content.get('functions'):
        yield f'functions: {len(functions)}: {", ".join(functions)}'
    if 'flops' in content:
        open_ones = content['flops_unknown']
        more = f'; {open_ones} nodes more with open shapes (give sizes with --shape)' if open_ones else ''
        yield f'convolutions and matrix products: {flops.text(content["flops"])}{more}'
    yield from _metadata_lines(content['metadata'])


def _values_line(entries: list[dict[str, Any]]) -> str:
    return ', '.join(f'{entry["name"]} {entry["type"]}' for entry in entries) or 'none'


def _metadata_lines(metadata: dict[str, str]) -> Iterator[str]:
    """Yield the metadata, without those of ours that are long tables."""
    for key, value in metadata.items():
        if not key.startswith(PREFIX) or key.removeprefix(PREFIX) in SHOWN_METADATA:
            text = ' '.join(value.split())
            yield f'{key}: {text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."}'


def _value(entry: onnx.ValueInfoProto) -> dict[str, Any]:
    dtype, shape = types.dtype(entry.type.tensor_type.elem_type), types.shape(entry.type) or []
    return dict(name=entry.name, dtype=dtype, shape=shape, type=types.text(entry.type))


def _item_bytes(kind: int) -> float:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    except (KeyError, ValueError):
        return 0


LONGEST = 12
"""Names of a list that are printed."""


def describe_edit(before: Sequence[onnx.ModelProto], after: onnx.ModelProto) -> dict[str, Any]:
    """Return what changed, as plain JSON types.

    Returns:
        `nodes` [before, after], `operators` (name -> difference), `inputs` and `outputs` (`added`,
        `removed` and `changed`: name -> type), `metadata_removed` (keys), `changed`.
    """
    old = [node.op_type for model in before for node in model.graph.node]
    counts = collections.Counter(node.op_type for node in after.graph.node)
    counts.subtract(old)
    keys = {entry.key for model in before for entry in model.metadata_props}
    return dict(
        nodes=[len(old), len(after.graph.node)],
        operators={name: many for name, many in sorted(counts.items()) if many},
        inputs=_changed_ends([model.graph.input for model in before], after.graph.input),
        outputs=_changed_ends([model.graph.output for model in before], after.graph.output),
        metadata_removed=sorted(keys.difference(entry.key for entry in after.metadata_props)),
        changed=len(before) != 1 or before[0] != after,
    )


def _changed_ends(
    before: Sequence[Sequence[onnx.ValueInfoProto]], after: Sequence[onnx.ValueInfoProto]
) -> dict[str, dict[str, str]]:
    old = {value.name: types.text(value.type) for values in before for value in values}
    new = {value.name: types.text(value.type) for value in after}
    return dict(
        added={name: text for name, text in new.items() if name not in old},
        removed={name: text for name, text in old.items() if name not in new},
        changed={name: text for name, text in new.items() if old.get(name, text) != text},
    )


def edit_lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield what `describe_edit` found as lines of text."""
    if not content['changed']:
        yield 'nothing changed: the file is that way already'
        return
    old, new = content['nodes']
    if content['operators']:
        counts = [f'{name} {many:+d}' for name, many in content['operators'].items()]
        yield f'nodes: {old} -> {new} ({join_names(counts, LONGEST)})'
    for side in ('inputs', 'outputs'):
        for what, entries in content[side].items():
            if entries:
                yield f'{side} {what}: {join_names([*map(" ".join, entries.items())], LONGEST)}'
    if content['metadata_removed']:
        keys = [key for key in content['metadata_removed'] if not key.startswith(PREFIX)]
        keys += [f'{PREFIX}*'] if len(keys) < len(content['metadata_removed']) else []
        yield f'metadata removed: {join_names(keys, LONGEST)}: it describes the whole graph that was exported'
