"""The nodes of a sparse graph as the engine reads them: as plain data, as lines, and as a picture."""

from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.graph.show.draw import check_suffix, label, new_picture, save_picture
from mmdeploy_ext.sparse.contract import Reader
from mmdeploy_ext.sparse.contract_flow import Walk

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import onnx
    from pygraphviz import AGraph

    from mmdeploy_ext.sparse.contract_fields import Layer
    from mmdeploy_ext.sparse.contract_flow import Flow

TITLES = {'Relu': 'ReLU', 'QuantAdd': 'Add'}
FACES = {
    'subm': ('#dbe9f7', 'submanifold convolution'),
    'conv': ('#3b73c5', 'strided convolution'),
    'Add': ('#fbe3c8', 'Add'),
    'Relu': ('#e9eef3', 'Relu'),
    'dense': ('#d9f0e2', 'dense'),
}
"""Kind of node -> colour, and its name in the legend."""
INT8_EDGE = '#b3541e'
HEAVY = 20
"""Weight of the edges that Graphviz draws straight."""


def sparse_layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the nodes of a sparse graph as the engine reads them, with grids and channels."""
    layers = Reader(model.graph).layers
    flows = Walk(model.graph, layers, None).flows
    counts: collections.Counter[str] = collections.Counter()
    rows = []
    for layer in layers:
        title = TITLES.get(layer.op_type, layer.op_type)
        row = dict(name=layer.name, op_type=layer.op_type, number=counts[title], inputs=list(layer.inputs))
        rows.append(dict(row, output=layer.output, **_facts(layer, flows.get(layer.output))))
        counts[title] += 1
    return rows


def _facts(layer: Layer, flow: Flow | None) -> dict[str, Any]:
    """Return the facts of a node that are shown, as the engine knows them."""
    names = ('kernel_size', 'stride', 'padding', 'dilation', 'subm', 'inverse', 'activation', 'rulebook')
    names += ('output_bound', 'precision', 'output_precision', 'format', 'dims')
    known = {name: layer.values[name] for name in names if name in layer.values}
    facts = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    if layer.is_convolution and layer.weight.ndim == 5:
        facts.update(in_channels=layer.weight.shape[4], out_channels=layer.weight.shape[0])
    if flow is not None:
        facts.update(grid=list(flow.grid), sites=flow.sites, shape=list(flow.shape), dense=flow.dense)
    return facts


def trace_lines(layers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield one line per node in the words of the reference exporter's trace, and what is behind it.

    E.g. `--> SparseConvolution0[subm] -> Input 0, Output 1   5 -> 16, 3x3x3 on 1440x1440x41, ReLU`.
    """
    traced = [
        f'--> {TITLES.get(row["op_type"], row["op_type"])}{row["number"]}{_bracket(row)} -> '
        f'Input {" + ".join(row["inputs"])}, Output {row["output"]}'
        for row in layers
    ]
    width = max(map(len, traced), default=0)
    for line, row in zip(traced, layers, strict=True):
        yield f'{line:<{width}}  {_details(row)}'.rstrip()


def _bracket(row: dict[str, Any]) -> str:
    if row['op_type'] == 'SparseConvolution':
        return '[inverse]' if row['inverse'] else '[subm]' if row['subm'] else '[conv]'
    if 'format' in row:
        return f'[{row["format"]}]'
    return f'[{",".join(map(str, row["dims"]))}]' if 'dims' in row else ''


def _details(row: dict[str, Any]) -> str:
    """Return what a node does, in a few words."""
    words = []
    if row['op_type'] == 'SparseConvolution':
        channels = f'{row.get("in_channels", "?")} -> {row.get("out_channels", "?")}'
        words.append(f'{channels}, {by(row["kernel_size"])}')
        if not row['subm']:
            words.append(f'stride {by(row["stride"])}, padding {by(row["padding"])}')
    where = row.get('shape') if row.get('dense') else row.get('grid')
    if where and row['op_type'] not in ('Relu', 'Add', 'QuantAdd'):
        words.append(f'{"" if row.get("dense") else "on "}{by(where)}')
    if row.get('activation') not in (None, '', 'None'):
        words.append(row['activation'])
    if row.get('rulebook'):
        words.append(f'rulebook {row["rulebook"]}')
    words += filter(None, [precision_text(row, '->')])
    return ', '.join(words)


def precision_text(row: dict[str, Any], arrow: str = '→') -> str:
    """Return 'fp16 → int8', '' where a node states none."""
    kinds = row.get('precision'), row.get('output_precision')
    return f'{kinds[0] or "fp16"} {arrow} {kinds[1] or "fp16"}' if any(kinds) else ''


def by(sizes: list[int]) -> str:
    """Return '3x3x3'."""
    return 'x'.join(map(str, sizes)) or '?'


def draw_sparse(model: onnx.ModelProto, target: str | os.PathLike[str], title: str = '') -> None:
    """Draw a sparse graph into an SVG, PNG or PDF file; a UsageError refuses another suffix.

    It has one column per set of active sites, from the voxels to the dense map.
    """
    check_suffix(target)
    picture, layers = new_picture(title), sparse_layers(model)
    picture.graph_attr.update(label=_heading(title), rankdir='LR', nodesep='0.4', ranksep='0.6')
    column_of = columns(layers)
    for number, row in enumerate(layers):
        _add_node(picture, number, row)
    for column in dict.fromkeys(column_of):
        members = [number for number, other in enumerate(column_of) if other == column]
        head = f'column {column}'
        entry = dict(style='invis') if column else dict(label=layers[0]['inputs'][0])
        picture.add_node(head, label=by(layers[members[0]].get('grid') or []), shape='plaintext', style='')
        picture.add_edge(head, members[0], weight=HEAVY, **entry)
        picture.add_subgraph([head, *members], rank='same')
        if column:
            picture.add_edge(f'column {column - 1}', head, style='invis', weight=HEAVY)
    _add_edges(picture, layers, column_of)
    save_picture(picture, target)


def columns(layers: list[dict[str, Any]]) -> list[int]:
    """Return the column of every node: a new one where the set of active sites is another."""
    pairs = itertools.pairwise(layers)
    changes = [below.get('sites') != above.get('sites') for above, below in pairs]
    return list(itertools.accumulate(changes, initial=0))[: len(layers)]


def _add_node(picture: AGraph, number: int, row: dict[str, Any]) -> None:
    is_convolution = row['op_type'] == 'SparseConvolution'
    kind = ('subm' if row['subm'] else 'conv') if is_convolution else row['op_type'].removeprefix('Quant')
    quantised = 'int8' in (row.get('precision'), row.get('output_precision'))
    style = dict(color=INT8_EDGE, penwidth=1.6) if quantised else {}
    face, _ = FACES.get(kind, FACES['dense'])
    ink = 'white' if kind == 'conv' else '#1b2330'
    picture.add_node(number, label=label(_texts(row)), fillcolor=face, fontcolor=ink, **style)


def _texts(row: dict[str, Any]) -> list[str]:
    """Return the lines of a box."""
    words = [precision_text(row)]
    title = row['name']
    if row['op_type'] == 'SparseConvolution':
        title += f'   {row.get("in_channels", "?")} → {row.get("out_channels", "?")}'
        stride = '' if row['subm'] else f'stride {by(row["stride"])}'
        activation = '' if row['activation'] in ('', 'None') else row['activation']
        words = [by(row['kernel_size']), stride, *words, activation]
    if row.get('dense'):
        words = [row.get('format', ''), by(row.get('shape') or row.get('dims') or [])]
    facts = ' · '.join(filter(None, words))
    return [title, facts] if facts else [title]


def _add_edges(picture: AGraph, layers: list[dict[str, Any]], column_of: list[int]) -> None:
    """Join the nodes; tensors are named where they go on to the next node or column, and leave."""
    made = {row['output']: number for number, row in enumerate(layers)}
    used = {tensor for row in layers for tensor in row['inputs']}
    for number, row in enumerate(layers):
        for tensor in filter(made.__contains__, row['inputs']):
            source = made[tensor]
            across, follows = column_of[source] != column_of[number], number == source + 1
            name = f'  {tensor}  ' if across or follows else ''
            weight = HEAVY if follows and not across else 0
            picture.add_edge(source, number, label=name, weight=weight)
        if row['output'] not in used:
            picture.add_node(f'end {number}', label=row['output'], shape='plaintext', style='')
            picture.add_edge(number, f'end {number}', weight=HEAVY)
            picture.add_subgraph([number, f'end {number}'], rank='same')


def _heading(title: str) -> str:
    """Return the title with a legend below it."""
    cells = ''.join(f'<td bgcolor="{face}">    </td><td>{name}  </td>' for face, name in FACES.values())
    cells += f'<td border="1" color="{INT8_EDGE}">    </td><td>int8</td>'
    title = f'<tr><td colspan="{2 * len(FACES) + 2}" align="left">{label([title])[1:-1]}</td></tr>'
    return f'<<table border="0" cellborder="0">{title}<tr>{cells}</tr></table>>'
