"""Any graph as a picture: nodes as boxes from the inputs down to the outputs, constants left out.

Graphviz places and draws (measured with `SPEED`: 0.7 s for 950 nodes, 6 s for 1,800, 70 s for 5,400).
Nodes inside subgraphs, such as those of Loop, are not drawn. Needs onnx and pygraphviz.
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
from mmdeploy_ext.core.files import AnyPath, atomic_path
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index

if TYPE_CHECKING:
    from pygraphviz import AGraph

FORMATS = ('.svg', '.png', '.pdf')
"""Suffixes of the files that can be written."""
LONGEST = 44
"""Characters of a name that are shown; the tooltip has all."""
BLUE, GREEN, ORANGE, PINK = '#3b73c5', '#d9f0e2', '#fbe3c8', '#f4d6de'
"""Fill colours of boxes."""
FACES = {
    **dict.fromkeys(('Conv', 'ConvTranspose', 'DeformConv', 'Gemm', 'MatMul', 'Einsum'), BLUE),
    **dict.fromkeys(('input', 'output'), GREEN),
    **dict.fromkeys(('Add', 'Concat', 'Sub', 'Mul', 'Div'), ORANGE),
    **dict.fromkeys(('If', 'Loop', 'Scan', 'NonMaxSuppression', 'TopK'), PINK),
    'more': 'white',
}
"""Operator, or kind of another box -> its fill colour; 'more' is for tensors of nodes that are not drawn."""
FACE, MARKED, INK, SOFT, EDGE = '#e9eef3', '#b3541e', '#1b2330', '#6a7684', '#44505f'
"""Colours: of boxes of other operators, of the marked node's border, of text, of faint text, of lines."""
_WINDOW = ('kernel_shape', 'strides', 'pads', 'dilations', 'group')
SHOWN = (*_WINDOW, 'axis', 'axes', 'perm', 'to', 'mode', 'epsilon')
"""Attributes that a box shows if a node states them, but for values as in `DEFAULTS`."""
WORDS = {'kernel_shape': 'kernel', 'strides': 'stride', 'dilations': 'dilation'}
"""Name of an attribute -> its word in a box, if that is another one."""
DEFAULTS = {'group': '1', 'dilations': '1x1', 'strides': '1x1', 'pads': '0x0x0x0'}
"""Name of an attribute -> its default in two dimensions as text, which a box does not show."""
SPEED = dict(nslimit='1', nslimit1='1', mclimit='0.25', splines='polyline')
"""Options that let Graphviz stop refining early: they halve the time for 5,400 nodes."""


def new_picture(title: str) -> AGraph:
    """Return an empty picture with this project's style and a title.

    Raises:
        ModuleNotFoundError: pygraphviz is not installed.
        UsageError: it is installed, and cannot be imported.
    """
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
    """Return Graphviz's HTML for the text of a box or title: the first line bold, further ones smaller.

    `lines` are plain texts, which are escaped, at least one; if the first is '', the result is '', whatever
    follows.
    """
    first, *rest = map(html.escape, lines)
    small = ''.join(f'<br/><font point-size="10">{line}</font>' for line in rest)
    return f'<<b>{first}</b>{small}>' if first else ''


def tooltip(text: str) -> str:
    """Return a text for a tooltip with its backslashes doubled: a single one begins a code of Graphviz."""
    return text.replace('\\', '\\\\')


def save_picture(picture: AGraph, target: AnyPath) -> None:
    """Lay out a picture by Graphviz's library, which pygraphviz has, and write it to `target` atomically.

    A missing folder is made. The suffix decides the format; UsageError: it is not one of `FORMATS`;
    Mm2OnnxError: the file cannot be written.
    """
    with atomic_path(target) as temporary, _without_font_warnings():
        picture.draw(str(temporary), format=check_suffix(target), prog='dot')


def check_suffix(target: AnyPath) -> str:
    """Return the format of a file by its suffix, e.g. 'svg'; UsageError if it is none of `FORMATS`."""
    suffix = Path(target).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f'--output {target}: expected a name that ends in {", ".join(FORMATS)}')
    return suffix[1:]


@contextlib.contextmanager
def _without_font_warnings() -> Iterator[None]:
    """Keep off the console what Graphviz's C libraries print of newer font settings and of large graphs."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stderr(nothing):
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def draw(
    model: onnx.ModelProto, target: AnyPath, *, title: str = '', node: str | None = None, depth: int = 3
) -> int:
    """Draw a graph, or the surroundings of a node, and return how many nodes are in the picture.

    Nodes that make constants are left out, unless there are no others.

    Args:
        model: the graph.
        target: file to write; its suffix is one of `FORMATS`.
        title: title of the picture.
        node: name of the node in the middle, or '#12' for that at position 12 of the graph, from 0; None
            draws the whole graph.
        depth: largest number of edges between that node and another one that is drawn, see `neighbourhood`.

    Raises:
        UsageError: another suffix than `FORMATS`, a negative depth, a node that is not there or whose name
            several nodes have, or a pygraphviz that cannot be imported.
        ModuleNotFoundError: pygraphviz is not installed.
        Mm2OnnxError: the file cannot be written.
    """
    check_suffix(target)
    if depth < 0:
        raise UsageError(f'--depth {depth}: expected 0 or more')
    index = Index(model)
    nodes = set(range(len(index.nodes)))
    marked = None if node is None else index.find_node(node)
    if marked is None:
        positions = sorted(nodes - index.constant_nodes() or nodes)
    else:
        positions = neighbourhood(index, marked, depth)
    drawing = _Drawing(new_picture(title), index, positions, types.infer(model))
    drawing.picture.graph_attr.update(SPEED)
    for position in positions:
        drawing.add_node(position, position == marked)
    drawing.add_edges()
    save_picture(drawing.picture, target)
    return len(positions)


def neighbourhood(index: Index, start: int, depth: int) -> list[int]:
    """Return the positions of nodes at most `depth` edges away from that at `start`, `start` included.

    Edges count in both directions, so that at a depth of 2 there are also nodes that read what it reads, if
    that is no input of the graph and no constant. Other nodes that make constants are left out. `index` is
    that of the graph, positions are those in it.
    """
    constant, nodes, rim = index.constant_nodes(), {start}, {start}
    for _ in range(depth):
        above = {index.producer(name) for position in rim for name in index.reads(position)} - {None}
        outputs = [name for position in rim for name in index.writes(position)]
        below = {reader for name in outputs for reader in index.consumers(name)}
        rim = (above | below) - nodes - constant
        nodes |= rim
    return sorted(nodes)


class _Drawing:
    """Adds the nodes at some positions of a graph to a picture, and what they read and give.

    Attributes:
        boxes: tensor -> key of the box in the picture that it comes from.
        labelled: tensors that have an edge with their shape.
    """

    def __init__(
        self, picture: AGraph, index: Index, positions: list[int], tensor_types: dict[str, onnx.TypeProto]
    ) -> None:
        self.picture, self.index, self.positions, self.types = picture, index, positions, tensor_types
        self.boxes = {name: f'node {position}' for position in positions for name in index.writes(position)}
        self.labelled: set[str] = set()

    def add_node(self, position: int, is_marked: bool) -> None:
        node = self.index.nodes[position]
        lines = [node.op_type, _shortened(node.name or f'#{position}')]
        texts = [f'{WORDS.get(name, name)} {value}' for name, value in _attribute_texts(node)]
        if texts:
            lines.append(' · '.join(texts))
        tip = [f'#{position} {node.op_type} {node.name}'.rstrip()]
        tip += [f'reads {name}' for name in self.index.reads(position)]
        tip += [f'writes {name}' for name in self.index.writes(position)]
        border = dict(color=MARKED, penwidth=3) if is_marked else {}
        self._add_box(f'node {position}', node.op_type, lines, '\n'.join(tip), **border)

    def add_edges(self) -> None:
        """Join the nodes; tensors from and to nodes that are not drawn get a box of their own."""
        index, inside, constant = self.index, set(self.positions), self.index.constant_nodes()
        for position in self.positions:
            for name in index.reads(position):
                is_input, producer = name in index.inputs, index.producer(name)
                is_computed = producer is not None and producer not in constant
                if name not in self.boxes and (is_input or is_computed):
                    self.boxes[name] = self._add_end(name, 'input' if is_input else 'more')
                if name in self.boxes:
                    self._join(name, f'node {position}')
        for name in [name for position in self.positions for name in index.writes(position)]:
            outside = sum(reader not in inside for reader in index.consumers(name))
            if name in index.outputs:
                self._join(name, self._add_end(name, 'output'))
            elif outside:
                self._join(name, self._add_end(name, 'more', outside))

    def _join(self, name: str, end: str) -> None:
        """Draw a tensor from its box to another one; its first edge has its shape."""
        size = '' if name in self.labelled else types.shape_label(self.types.get(name))
        self.labelled.add(name)
        size_label = f'  {size}  ' if size else ''
        self.picture.add_edge(self.boxes[name], end, tooltip=tooltip(name), taillabel=size_label)

    def _add_end(self, name: str, kind: str, outside: int = 0) -> str:
        """Add a box for a tensor and return its key; `kind` is 'input', 'output' or 'more'.

        `outside` is the number of nodes that read the tensor and are not drawn.
        """
        key, lines, style = f'{kind} {len(self.picture.nodes())}', [kind, _shortened(name)], {}
        if kind == 'more':
            lines = [f'... {outside} more' if outside > 1 else '...']
            style = dict(color=SOFT, style='rounded,filled,dashed')
        self._add_box(key, kind, lines, name, **style)
        return key

    def _add_box(self, key: str, kind: str, lines: list[str], tip: str, **style: object) -> None:
        face = FACES.get(kind, FACE)
        ink = 'white' if face == BLUE else INK
        attributes = dict(label=label(lines), tooltip=tooltip(tip), fillcolor=face, fontcolor=ink)
        self.picture.add_node(key, **attributes, **style)


def _attribute_texts(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    """Yield names and texts of the attributes that a box shows."""
    for entry in node.attribute:
        if entry.name not in SHOWN:
            continue
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


def _shortened(text: str) -> str:
    """Return the end of a long name, which distinguishes nodes better than its beginning."""
    return text if len(text) <= LONGEST else f'...{text[3 - LONGEST :]}'
