"""Any graph as a picture: nodes as boxes from the inputs down to the outputs, constants left out.

Graphviz places and draws (measured: 0.7 s for 950 nodes, 6 s for 1,800, 70 s for 5,400).
Needs onnx and pygraphviz.
"""

from __future__ import annotations

import contextlib
import html
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.checks import FileName
from mmdeploy_ext.graph.io.index import Index

if TYPE_CHECKING:
    from pygraphviz import AGraph

FORMATS = ('.svg', '.png', '.pdf')
LONGEST = 44
"""Characters of a name that are shown; the tooltip has all."""
BLUE, GREEN, ORANGE, PINK = '#3b73c5', '#d9f0e2', '#fbe3c8', '#f4d6de'
FACES = {
    **dict.fromkeys(('Conv', 'ConvTranspose', 'DeformConv', 'Gemm', 'MatMul', 'Einsum'), BLUE),
    **dict.fromkeys(('input', 'output'), GREEN),
    **dict.fromkeys(('Add', 'Concat', 'Sub', 'Mul', 'Div'), ORANGE),
    **dict.fromkeys(('If', 'Loop', 'Scan', 'NonMaxSuppression', 'TopK'), PINK),
    'more': 'white',
}
FACE, MARKED, INK, SOFT, EDGE = '#e9eef3', '#b3541e', '#1b2330', '#6a7684', '#44505f'
_OF_WINDOWS = ('kernel_shape', 'strides', 'pads', 'dilations', 'group')
SHOWN = (*_OF_WINDOWS, 'axis', 'axes', 'perm', 'to', 'mode', 'epsilon')
"""Attributes that a box shows; where they have their default they are left out."""
WORDS = {'kernel_shape': 'kernel', 'strides': 'stride', 'dilations': 'dilation'}
DEFAULTS = {'group': '1', 'dilations': '1x1', 'strides': '1x1', 'pads': '0x0x0x0'}
SPEED = dict(nslimit='1', nslimit1='1', mclimit='0.25', splines='polyline')
"""Options that let Graphviz stop refining early: half the time for 5,400 nodes."""


def new_picture(title: str) -> AGraph:
    """Return an empty picture with this project's style."""
    try:
        import pygraphviz
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == 'pygraphviz':
            raise
        raise UsageError(
            f'pygraphviz is installed for {sys.executable} and cannot be imported ({error}); install it '
            f"again: pip install --force-reinstall 'mm2onnx[draw]', or '.[draw]' in a checkout"
        ) from error

    font = dict(fontname='Helvetica,Arial,sans-serif')
    picture = pygraphviz.AGraph(directed=True, strict=False)
    picture.graph_attr.update(font, label=label([title]), labelloc='t', labeljust='l', ranksep='0.45')
    picture.node_attr.update(
        font, shape='box', style='rounded,filled', fontsize='11', color=EDGE, margin='0.11,0.05'
    )
    picture.edge_attr.update(font, fontsize='9', fontcolor=SOFT, color=EDGE, arrowsize='0.6')
    return picture


def label(lines: Iterable[str]) -> str:
    """Return the text of a box or title: the first line bold."""
    first, *rest = map(html.escape, lines)
    more = ''.join(f'<br/><font point-size="10">{line}</font>' for line in rest)
    return f'<<b>{first}</b>{more}>' if first else ''


def tooltip(text: str) -> str:
    """Return a text for a tooltip; Graphviz takes a backslash for the beginning of a name."""
    return text.replace('\\', '\\\\')


def save_picture(picture: AGraph, target: FileName) -> None:
    """Let Graphviz lay out a picture and write it atomically; the suffix decides the format."""
    with atomic_path(target) as temporary, _without_font_warnings():
        picture.draw(str(temporary), format=check_suffix(target), prog='dot')


def check_suffix(target: FileName) -> str:
    """Return the format that a file's suffix says; another one than `FORMATS` is a UsageError."""
    suffix = Path(target).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f'--output {target}: expected a name that ends in {", ".join(FORMATS)}')
    return suffix[1:]


@contextlib.contextmanager
def _without_font_warnings() -> Iterator[None]:
    """Keep off the console what Graphviz's C libraries say of newer font settings and of large graphs."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stderr(nothing):
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def neighbourhood(index: Index, start: int, depth: int) -> list[int]:
    """Return the nodes at most `depth` steps up or down from a node, without those that make constants."""
    constant, found, edge = index.constant_nodes(), {start}, {start}
    for _ in range(depth):
        above = {index.producer(name) for at in edge for name in index.reads(at)} - {None}
        below = {at for here in edge for name in index.writes(here) for at in index.consumers(name)}
        edge = (above | below) - found - constant
        found |= edge
    return sorted(found)


def draw(
    model: onnx.ModelProto, target: FileName, *, title: str = '', node: str | None = None, depth: int = 3
) -> int:
    """Draw a graph, or what is at most `depth` steps around a node; return how many nodes are in the picture.

    Raises:
        UsageError: another suffix than `FORMATS`, a negative depth, or a node that is not there.
    """
    check_suffix(target)
    if depth < 0:
        raise UsageError(f'--depth {depth}: expected 0 or more')
    index = Index(model)
    everything = set(range(len(index.nodes)))
    marked = None if node is None else index.find_node(node)
    if marked is None:
        positions = sorted(everything - index.constant_nodes() or everything)
    else:
        positions = neighbourhood(index, marked, depth)
    picture = new_picture(title)
    picture.graph_attr.update(SPEED)
    for at in positions:
        _add_node(picture, index, at, at == marked)
    _add_edges(picture, index, positions, types.infer(model))
    save_picture(picture, target)
    return len(positions)


def _add_node(picture: AGraph, index: Index, position: int, marked: bool) -> None:
    node = index.nodes[position]
    facts = ' · '.join(f'{WORDS.get(name, name)} {value}' for name, value in _attributes(node))
    lines = [node.op_type, _short(node.name or f'#{position}'), *filter(None, [facts])]
    tip = [f'#{position} {node.op_type} {node.name}'.rstrip()]
    tip += [f'reads {name}' for name in index.reads(position)]
    tip += [f'writes {name}' for name in index.writes(position)]
    border = dict(color=MARKED, penwidth=3) if marked else {}
    _add_box(picture, f'node {position}', node.op_type, lines, '\n'.join(tip), **border)


def _add_box(picture: AGraph, key: str, kind: str, lines: list[str], tip: str, **style: object) -> None:
    face = FACES.get(kind, FACE)
    ink = 'white' if face == BLUE else INK
    picture.add_node(key, label=label(lines), tooltip=tooltip(tip), fillcolor=face, fontcolor=ink, **style)


def _attributes(node: onnx.NodeProto) -> Iterable[tuple[str, str]]:
    for entry in (entry for entry in node.attribute if entry.name in SHOWN):
        value = onnx.helper.get_attribute_value(entry)
        if isinstance(value, bytes):
            value = value.decode(errors='replace')
        elif entry.name == 'to':
            value = types.dtype(value)
        elif entry.type == onnx.AttributeProto.INTS:
            value = 'x'.join(map(str, value))
        elif isinstance(value, float):
            value = f'{value:g}'
        if DEFAULTS.get(entry.name) != str(value):
            yield entry.name, str(value)[:LONGEST]


def _add_edges(picture: AGraph, index: Index, positions: list[int], kinds: dict[str, onnx.TypeProto]) -> None:
    """Join the nodes; what they read from elsewhere and what others read of them gets a box of its own."""
    sources = {name: f'node {at}' for at in positions for name in index.writes(at)}
    inside, constant, labelled = set(positions), index.constant_nodes(), set()

    def join(name: str, end: str) -> None:
        size = '' if name in labelled else types.shape_label(kinds.get(name))
        labelled.add(name)
        picture.add_edge(sources[name], end, tooltip=tooltip(name), taillabel=f'  {size}  ' if size else '')

    for at in positions:
        for name in index.reads(at):
            fed, maker = name in index.inputs, index.producer(name)
            if name not in sources and (fed or (maker is not None and maker not in constant)):
                sources[name] = _add_end(picture, name, 'input' if fed else 'more')
            if name in sources:
                join(name, f'node {at}')
    for name in [name for at in positions for name in index.writes(at)]:
        outside = sum(at not in inside for at in index.consumers(name))
        if name in index.outputs or outside:
            join(name, _add_end(picture, name, 'output' if name in index.outputs else 'more', outside))


def _add_end(picture: AGraph, name: str, kind: str, outside: int = 0) -> str:
    key, lines, style = f'{kind} {len(picture.nodes())}', [kind, _short(name)], {}
    if kind == 'more':
        lines = [f'... {outside} more' if outside > 1 else '...']
        style = dict(color=SOFT, style='rounded,filled,dashed')
    _add_box(picture, key, kind, lines, name, **style)
    return key


def _short(text: str) -> str:
    """Keep the end of a name, which says more than its beginning."""
    return text if len(text) <= LONGEST else f'...{text[3 - LONGEST :]}'
