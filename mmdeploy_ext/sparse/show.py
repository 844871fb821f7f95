"""The nodes of a sparse graph as the engine reads them: as plain data, as lines, and as a picture."""

from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.graph.show.draw import check_suffix, label, new_picture, save_picture
from mmdeploy_ext.sparse.libspconv_contract import TensorWalk
from mmdeploy_ext.sparse.libspconv_parser import EngineParser

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import onnx
    from pygraphviz import AGraph


TITLES = {'Relu': 'ReLU', 'QuantAdd': 'Add'}
"""Operator -> its name in the trace; others keep theirs."""
FACES = {
    'subm': ('#dbe9f7', 'submanifold convolution'),
    'conv': ('#3b73c5', 'strided convolution'),
    'Add': ('#fbe3c8', 'Add'),
    'Relu': ('#e9eef3', 'Relu'),
    'dense': ('#d9f0e2', 'dense'),
}
"""Kind of node -> colour, and its name in the legend; 'dense' is that of all other operators."""
INT8_EDGE = '#b3541e'
"""Colour of the border of a node that computes in or stores int8."""
GEOMETRY = ('kernel_size', 'stride', 'padding', 'dilation', 'subm', 'inverse', 'activation', 'rulebook')
"""Attributes of a convolution that decide its sites, and its activation."""
ATTRIBUTES = (*GEOMETRY, 'output_bound', 'precision', 'output_precision', 'format', 'dims')
"""Attributes of nodes that are shown."""
HEAVY = 20
"""Weight of the edges that Graphviz draws straight."""


def sparse_layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the nodes of a sparse graph as the engine reads them, one dictionary for each.

    Keys: `name`, `op_type`, `number` among the nodes of its title (`TITLES`) from 0, `inputs`, `output`, each
    of `ATTRIBUTES` that the engine reads of the operator, with its defaults (`subm` and `inverse` are 0 or
    1), `in_channels` and `out_channels` of a convolution with a weight, and of the output the `grid`, `sites`
    (name of its set of active sites), `shape` and `dense` of `libspconv_contract.TensorFacts`. Nodes of
    operators that the engine does not have are left out.
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
    """Yield a line per entry of `sparse_layers` in the words of the reference exporter's trace, and details.

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
    """Return the operation of a node in a few words."""
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
    if text := precision_text(row, '->'):
        words.append(text)
    return ', '.join(words)


def precision_text(row: dict[str, Any], arrow: str = '→') -> str:
    """Return 'fp16 → int8' of an entry of `sparse_layers`, '' if the node states no precision.

    A precision that is '' beside one that is stated is 'fp16'. `arrow` stands between the precisions.
    """
    precision, output_precision = row.get('precision'), row.get('output_precision')
    if not precision and not output_precision:
        return ''
    return f'{precision or "fp16"} {arrow} {output_precision or "fp16"}'


def by(sizes: list[int]) -> str:
    """Return sizes as text, e.g. '3x3x3'; '?' if there are none."""
    return 'x'.join(map(str, sizes)) or '?'


def draw_sparse(model: onnx.ModelProto, target: str | os.PathLike[str], title: str = '') -> None:
    """Draw a sparse graph into an SVG, PNG or PDF file, with the columns of `columns`.

    Args:
        model: content of a libspconv file.
        target: file to write; its suffix decides the format.
        title: text above the picture; '' for none.

    Raises:
        UsageError: another suffix, or pygraphviz is there and cannot be imported.
        ModuleNotFoundError: pygraphviz is not installed.
        Mm2OnnxError: the file cannot be written.
    """
    check_suffix(target)
    picture, layers = new_picture(title), sparse_layers(model)
    legend = ''.join(f'<td bgcolor="{face}">    </td><td>{name}  </td>' for face, name in FACES.values())
    legend += f'<td border="1" color="{INT8_EDGE}">    </td><td>int8</td>'
    above = f'<tr><td colspan="{2 * len(FACES) + 2}" align="left">{label([title])[1:-1]}</td></tr>'
    table = f'<<table border="0" cellborder="0">{above}<tr>{legend}</tr></table>>'
    picture.graph_attr.update(label=table, rankdir='LR', nodesep='0.4', ranksep='0.6')
    column_of = columns(layers)
    for index, row in enumerate(layers):
        kind = row['op_type'].removeprefix('Quant')
        if kind == 'SparseConvolution':
            kind = 'subm' if row['subm'] else 'conv'
        quantised = 'int8' in (row.get('precision'), row.get('output_precision'))
        style = dict(color=INT8_EDGE, penwidth=1.6) if quantised else {}
        fill, _ = FACES.get(kind, FACES['dense'])
        ink = 'white' if kind == 'conv' else '#1b2330'
        picture.add_node(index, label=label(_texts(row)), fillcolor=fill, fontcolor=ink, **style)
    for column in dict.fromkeys(column_of):
        members = [index for index, node_column in enumerate(column_of) if node_column == column]
        head = f'column {column}'
        edge_style = dict(style='invis') if column else dict(label=next(iter(layers[0]['inputs']), ''))
        picture.add_node(head, label=by(layers[members[0]].get('grid') or []), shape='plaintext', style='')
        picture.add_edge(head, members[0], weight=HEAVY, **edge_style)
        picture.add_subgraph([head, *members], rank='same')
        if column:
            picture.add_edge(f'column {column - 1}', head, style='invis', weight=HEAVY)
    _add_edges(picture, layers, column_of)
    save_picture(picture, target)


def columns(layers: list[dict[str, Any]]) -> list[int]:
    """Return the column of every entry of `sparse_layers`, from 0 on.

    A new column begins where the set of active sites changes, also where it changes back.
    """
    pairs = itertools.pairwise(layers)
    changes = [below.get('sites') != above.get('sites') for above, below in pairs]
    return list(itertools.accumulate(changes, initial=0))[: len(layers)]


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
    """Join the nodes; tensors are named on edges to the next node or column, and at the graph's outputs."""
    producers = {row['output']: index for index, row in enumerate(layers)}
    used = {tensor for row in layers for tensor in row['inputs']}
    for index, row in enumerate(layers):
        for tensor in filter(producers.__contains__, row['inputs']):
            source = producers[tensor]
            across, follows = column_of[source] != column_of[index], index == source + 1
            name = f'  {tensor}  ' if across or follows else ''
            weight = HEAVY if follows and not across else 0
            picture.add_edge(source, index, label=name, weight=weight)
        if row['output'] not in used:
            picture.add_node(f'end {index}', label=row['output'], shape='plaintext', style='')
            picture.add_edge(index, f'end {index}', weight=HEAVY)
            picture.add_subgraph([index, f'end {index}'], rank='same')
