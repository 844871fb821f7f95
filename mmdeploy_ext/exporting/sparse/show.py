"""The nodes of a sparse graph as the engine reads them, as plain data and lines."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import onnx

from mmdeploy_ext.exporting.sparse.libspconv import EngineParser
from mmdeploy_ext.exporting.sparse.libspconv_contract import TensorWalk

TITLES = {'Relu': 'ReLU', 'QuantAdd': 'Add'}
GEOMETRY = ('kernel_size', 'stride', 'padding', 'dilation', 'subm', 'inverse', 'activation', 'rulebook')
ATTRIBUTES = (*GEOMETRY, 'output_bound', 'precision', 'output_precision', 'format', 'dims')


def sparse_layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """A dictionary per node that the engine has.

    Keys: `name`, `op_type`, `number` among its title's nodes, `inputs`, `output`, `ATTRIBUTES` with defaults,
    `in_channels` and `out_channels` of convolutions, and `grid`, `sites`, `shape`, `dense` of `TensorFacts`.
    """
    nodes = EngineParser(model.graph).nodes
    tensors = TensorWalk(model.graph, nodes, None).tensors
    counts: collections.Counter[str] = collections.Counter()
    rows = []
    for node in nodes:
        title = TITLES.get(node.op_type, node.op_type)
        row = dict(name=node.name, op_type=node.op_type, number=counts[title], inputs=list(node.inputs))
        row['output'] = node.output
        for name in ATTRIBUTES:
            if name in node.values:
                value = node.values[name]
                row[name] = list(value) if isinstance(value, tuple) else value
        if node.is_convolution and node.weight.ndim == 5:
            row.update(in_channels=node.weight.shape[4], out_channels=node.weight.shape[0])
        if facts := tensors.get(node.output):
            row.update(grid=list(facts.grid), sites=facts.sites, shape=list(facts.shape), dense=facts.dense)
        rows.append(row)
        counts[title] += 1
    return rows


def trace_lines(layers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line per entry of `sparse_layers` in the words of the reference exporter's trace.

    E.g. `--> SparseConvolution0[subm] -> Input 0, Output 1  5 -> 16, 3x3x3, on 1440x1440x41, ReLU`.
    """
    lines = []
    for row in layers:
        bracket = ''
        if row['op_type'] == 'SparseConvolution':
            kind = 'subm' if row['subm'] else 'conv'
            bracket = '[inverse]' if row['inverse'] else f'[{kind}]'
        elif 'format' in row:
            bracket = f'[{row["format"]}]'
        elif 'dims' in row:
            bracket = f'[{",".join(map(str, row["dims"]))}]'
        lines.append(
            f'--> {TITLES.get(row["op_type"], row["op_type"])}{row["number"]}{bracket} -> '
            f'Input {" + ".join(row["inputs"])}, Output {row["output"]}'
        )
    width = max(map(len, lines), default=0)
    for line, row in zip(lines, layers, strict=True):
        yield f'{line:<{width}}  {_details(row)}'.rstrip()


def _details(row: dict[str, Any]) -> str:
    words = []
    if row['op_type'] == 'SparseConvolution':
        channels = f'{row.get("in_channels", "?")} -> {row.get("out_channels", "?")}'
        words.append(f'{channels}, {by(row["kernel_size"])}')
        if not row['subm']:
            words.append(f'stride {by(row["stride"])}, padding {by(row["padding"])}')
    sizes = row.get('shape') if row.get('dense') else row.get('grid')
    if sizes and row['op_type'] not in ('Relu', 'Add', 'QuantAdd'):
        words.append(by(sizes) if row.get('dense') else f'on {by(sizes)}')
    if row.get('activation') not in (None, '', 'None'):
        words.append(row['activation'])
    if row.get('rulebook'):
        words.append(f'rulebook {row["rulebook"]}')
    if text := _precision_text(row):
        words.append(text)
    return ', '.join(words)


def _precision_text(row: dict[str, Any]) -> str:
    precision, output_precision = row.get('precision'), row.get('output_precision')
    if not precision and not output_precision:
        return ''
    return f'{precision or "fp16"} -> {output_precision or "fp16"}'


def by(sizes: list[int]) -> str:
    return 'x'.join(map(str, sizes)) or '?'
