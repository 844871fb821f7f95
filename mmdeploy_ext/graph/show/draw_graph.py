"""Any graph as an SVG: nodes as boxes from the inputs down to the outputs, constants left out.

The layout is the usual layered one (Sugiyama, Tagawa and Toda, 1981): longest-path layers, bends for edges
over several layers, order by the median of the neighbours, then places by averaging with a minimum distance.
Needs onnx and numpy only.
"""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.passes.extract import constant_nodes
from mmdeploy_ext.graph.show.layout import Layout, arrange

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

CHARACTER, LINE_HEIGHT, PADDING = 6.2, 14, 8
"""Pixels: mean width of a character, height of a line, space within a box."""
GAP_X, GAP_Y, MARGIN = 26, 46, 40
LONGEST = 44
"""Characters of a name that are shown; the tooltip has all."""
FACES = {
    'Conv': '#3b73c5',
    'ConvTranspose': '#3b73c5',
    'DeformConv': '#3b73c5',
    'Gemm': '#3b73c5',
    'MatMul': '#3b73c5',
    'Einsum': '#3b73c5',
    'input': '#d9f0e2',
    'output': '#d9f0e2',
    'Add': '#fbe3c8',
    'Concat': '#fbe3c8',
    'Sub': '#fbe3c8',
    'Mul': '#fbe3c8',
    'Div': '#fbe3c8',
    'If': '#f4d6de',
    'Loop': '#f4d6de',
    'Scan': '#f4d6de',
    'NonMaxSuppression': '#f4d6de',
    'TopK': '#f4d6de',
}
FACE, MARKED, INK, SOFT, EDGE = '#e9eef3', '#b3541e', '#1b2330', '#6a7684', '#44505f'
SHOWN = (
    'kernel_shape',
    'strides',
    'pads',
    'dilations',
    'group',
    'axis',
    'axes',
    'perm',
    'to',
    'mode',
    'epsilon',
)
"""Attributes that a box shows; where they have their default they are left out."""
WORDS = {'kernel_shape': 'kernel', 'strides': 'stride', 'dilations': 'dilation'}
DEFAULTS = {'group': '1', 'dilations': '1x1', 'strides': '1x1', 'pads': '0x0x0x0'}


@dataclasses.dataclass
class Item:
    """A box: a node of the graph, an input, an output, or what the picture leaves out.

    Attributes:
        kind: operator, 'input', 'output' or 'more'.
        lines: texts of the box, the first one bold.
        tip: tooltip.
        marked: drawn with a border that shows.
    """

    kind: str
    lines: list[str]
    tip: str = ''
    marked: bool = False

    @property
    def width(self) -> float:
        """Pixels."""
        return max(map(len, self.lines)) * CHARACTER + 2 * PADDING

    @property
    def height(self) -> float:
        """Pixels."""
        return len(self.lines) * LINE_HEIGHT + PADDING


def neighbourhood(index: Index, start: int, depth: int) -> list[int]:
    """Return the nodes at most `depth` steps up or down from a node, without those that make constants."""
    constant, found, edge = constant_nodes(index), {start}, {start}
    for _ in range(depth):
        above = {index.producer(name) for at in edge for name in index.reads(at)} - {None}
        below = {at for here in edge for name in index.writes(here) for at in index.consumers(name)}
        edge = (above | below) - found - constant
        found |= edge
    return sorted(found)


def draw(
    model: onnx.ModelProto,
    target: str | os.PathLike[str],
    *,
    title: str = '',
    node: str | None = None,
    depth: int = 3,
) -> int:
    """Draw a graph, or what is around a node, and return how many nodes are in the picture.

    Args:
        model: of any origin.
        target: .svg file.
        title: above the picture.
        node: name of a node, or '#12'; None: the whole graph.
        depth: steps from the node that are drawn.

    Raises:
        UsageError: another suffix, a negative depth, or a node that is not there.
    """
    if Path(target).suffix.lower() != '.svg':
        raise UsageError(f'--output {target}: expected a name that ends in .svg')
    if depth < 0:
        raise UsageError(f'--depth {depth}: expected 0 or more')
    index = Index(model)
    if node is None:
        constant = constant_nodes(index)
        positions = [at for at in range(len(index.nodes)) if at not in constant]
        positions = positions or list(range(len(index.nodes)))
        marked = None
    else:
        marked = index.find_node(node)
        positions = neighbourhood(index, marked, depth)
    items, edges = _boxes(index, positions, marked)
    sizes = [(item.width, item.height) for item in items]
    layout = arrange(sizes, [(source, end) for source, end, _ in edges], GAP_X, GAP_Y)
    kinds = types.infer(model)
    with atomic_path(target) as temporary:
        temporary.write_text(_svg(items, edges, layout, kinds, title), encoding='utf-8')
    return len(positions)


def _boxes(
    index: Index, positions: list[int], marked: int | None
) -> tuple[list[Item], list[tuple[int, int, str]]]:
    """Return the boxes and the edges (from, to, tensor) between them."""
    items = [_node_item(index, at, at == marked) for at in positions]
    place = {at: number for number, at in enumerate(positions)}
    sources: dict[str, int] = {name: place[at] for at in positions for name in index.writes(at)}
    constant = constant_nodes(index)
    edges: list[tuple[int, int, str]] = []
    for at in positions:
        for name in index.reads(at):
            maker = index.producer(name)
            if name not in sources and (
                name in index.inputs or (maker is not None and maker not in constant)
            ):
                sources[name] = len(items)
                items.append(_end_item(name, 'input' if name in index.inputs else 'more'))
            if name in sources:
                edges.append((sources[name], place[at], name))
    for name in [name for at in positions for name in index.writes(at)]:
        outside = [at for at in index.consumers(name) if at not in place]
        if name in index.outputs or outside:
            edges.append((sources[name], len(items), name))
            items.append(_end_item(name, 'output' if name in index.outputs else 'more', len(outside)))
    return items, edges


def _node_item(index: Index, position: int, marked: bool) -> Item:
    node = index.nodes[position]
    lines = [node.op_type, _short(node.name or f'#{position}')]
    facts = [f'{WORDS.get(name, name)} {value}' for name, value in _attributes(node)]
    if facts:
        lines.append(' · '.join(facts))
    tip = [f'#{position} {node.op_type} {node.name}'.rstrip()]
    tip += [f'reads {name}' for name in index.reads(position)]
    tip += [f'writes {name}' for name in index.writes(position)]
    return Item(node.op_type, lines, '\n'.join(tip), marked)


def _attributes(node: onnx.NodeProto) -> Iterable[tuple[str, str]]:
    for entry in node.attribute:
        if entry.name in SHOWN:
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


def _end_item(name: str, kind: str, outside: int = 0) -> Item:
    if kind == 'more':
        return Item(kind, [f'... {outside} more' if outside > 1 else '...'], name)
    return Item(kind, [kind, _short(name)], name)


def _short(text: str) -> str:
    """Keep the end of a name, which says more than its beginning."""
    return text if len(text) <= LONGEST else f'...{text[3 - LONGEST :]}'


def _svg(
    items: list[Item],
    edges: list[tuple[int, int, str]],
    layout: Layout,
    kinds: dict[str, onnx.TypeProto],
    title: str,
) -> str:
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{MARGIN / 2}" y="26" font-size="15" '
        f'font-weight="bold" fill="{INK}">{html.escape(title)}</text>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{EDGE}"/></marker></defs>',
        f'<g transform="translate({MARGIN} {MARGIN + 24})">',
    ]
    labelled: set[tuple[int, str]] = set()
    for number, (source, _, tensor) in enumerate(edges):
        points = layout.routes[number]
        parts.append(_edge(points, tensor))
        if (source, tensor) not in labelled:
            labelled.add((source, tensor))
            parts.append(_edge_label(points, types.sizes(kinds.get(tensor))))
    parts += [_box(item, *layout.centres[number]) for number, item in enumerate(items)]
    return '\n'.join([*parts, '</g></svg>', ''])


def _edge(points: list[tuple[float, float]], tensor: str) -> str:
    """Draw a smooth line that leaves and arrives vertically."""
    (x, y), path = points[0], [f'M{points[0][0]:.1f} {points[0][1]:.1f}']
    for x_next, y_next in points[1:]:
        middle = (y + y_next) / 2
        path.append(f'C{x:.1f} {middle:.1f} {x_next:.1f} {middle:.1f} {x_next:.1f} {y_next:.1f}')
        x, y = x_next, y_next
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="{EDGE}" marker-end="url(#tip)">'
        f'<title>{html.escape(tensor)}</title></path>'
    )


def _edge_label(points: list[tuple[float, float]], text: str) -> str:
    x, y = points[0]
    return f'<text x="{x + 4:.1f}" y="{y + 12:.1f}" fill="{SOFT}" font-size="9">{html.escape(text)}</text>'


def _box(item: Item, x: float, y: float) -> str:
    face = 'white' if item.kind == 'more' else FACES.get(item.kind, FACE)
    ink = 'white' if face == FACES['Conv'] else INK
    left, top = x - item.width / 2, y - item.height / 2
    border = f'stroke="{MARKED}" stroke-width="3"' if item.marked else f'stroke="{EDGE}"'
    if item.kind == 'more':
        border = f'stroke="{SOFT}" stroke-dasharray="3 3"'
    parts = [
        f'<g><title>{html.escape(item.tip)}</title><rect x="{left:.1f}" y="{top:.1f}" '
        f'width="{item.width:.1f}" height="{item.height:.1f}" rx="5" fill="{face}" {border}/>'
    ]
    for number, line in enumerate(item.lines):
        weight = ' font-weight="bold"' if number == 0 else ' font-size="10"'
        at = top + LINE_HEIGHT * (number + 1)
        place = f'x="{x:.1f}" y="{at:.1f}" text-anchor="middle"'
        parts.append(f'<text {place} fill="{ink}"{weight}>{html.escape(line)}</text>')
    return ''.join([*parts, '</g>'])
