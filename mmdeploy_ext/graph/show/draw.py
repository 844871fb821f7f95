"""A sparse graph as a picture: one column per set of active sites, from the voxels to the dense map.

Needs onnx and matplotlib.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.graph.show.summary import by, sparse_layers
from mmdeploy_ext.sparse.contract import is_sparse

if TYPE_CHECKING:
    import os

    import onnx
    from matplotlib.axes import Axes

FORMATS = ('.svg', '.png', '.pdf')
WIDTH, HEIGHT, GAP_X, GAP_Y = 2.3, 0.62, 0.95, 0.34
"""Inches: of a box, and between boxes."""
FACES = {
    'subm': '#dbe9f7',
    'conv': '#3b73c5',
    'Add': '#fbe3c8',
    'Relu': '#e9eef3',
    'dense': '#d9f0e2',
}
LINE, SOFT, INT8_EDGE = '#44505f', '#6a7684', '#b3541e'


@dataclasses.dataclass(frozen=True)
class Box:
    """A node and where it stands; (x, y) is its centre, y downwards."""

    row: dict[str, Any]
    column: int
    x: float
    y: float


def draw_sparse(model: onnx.ModelProto, target: str | os.PathLike[str], title: str = '') -> None:
    """Draw a sparse graph into an SVG, PNG or PDF file.

    Args:
        model: in the libspconv dialect.
        target: file; its suffix decides the format.
        title: above the picture.

    Raises:
        ModelFileError: the model is in another dialect.
        UsageError: another suffix.
    """
    suffix = Path(target).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f'--output {target}: expected a name that ends in {", ".join(FORMATS)}')
    if not is_sparse(model):
        raise ModelFileError(
            f'{title or "the model"}: is an ordinary ONNX graph; `draw` draws sparse graphs of the libspconv '
            f'dialect (`show` prints a summary of any)'
        )
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    boxes = place(sparse_layers(model))
    width = max(box.x for box in boxes) + WIDTH / 2 + GAP_X
    height = max(box.y for box in boxes) + HEIGHT / 2 + 0.9
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'mm2onnx', 'font.size': 8}):
        figure = Figure(figsize=(width, height + 0.5))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, -0.5)
        axes.axis('off')
        _draw(axes, boxes)
        axes.text(GAP_X / 2, -0.25, title, fontsize=11, fontweight='bold', va='center')
        _legend(axes, height - 0.3)
        with atomic_path(target) as temporary:
            metadata = {'Date': None} if suffix == '.svg' else None
            figure.savefig(temporary, format=suffix[1:], dpi=110, facecolor='white', metadata=metadata)


def place(layers: list[dict[str, Any]]) -> list[Box]:
    """Give every node a place: a column for every strided convolution, in file order from the top."""
    boxes, column, filled, previous = [], 0, 0, None
    for row in layers:
        sites = row.get('sites')
        if previous is not None and sites != previous and filled:
            column, filled = column + 1, 0
        x = GAP_X + WIDTH / 2 + column * (WIDTH + GAP_X)
        boxes.append(Box(row, column, x, 0.95 + filled * (HEIGHT + GAP_Y)))
        previous, filled = sites, filled + 1
    return boxes


def _draw(axes: Axes, boxes: list[Box]) -> None:
    producers = {box.row['output']: (index, box) for index, box in enumerate(boxes)}
    used = {tensor for box in boxes for tensor in box.row['inputs']}
    for column in sorted({box.column for box in boxes}):
        first = next(box for box in boxes if box.column == column)
        axes.text(first.x, 0.16, by(first.row.get('grid') or []), ha='center', color=SOFT, fontsize=9)
    for index, box in enumerate(boxes):
        _draw_box(axes, box)
        if box.row['output'] not in used:
            bottom = box.y + HEIGHT / 2
            _arrow(axes, [(box.x, bottom), (box.x, bottom + GAP_Y)])
            axes.text(box.x + 0.06, bottom + GAP_Y / 2, box.row['output'], va='center', color=SOFT)
        for tensor in box.row['inputs']:
            if tensor in producers:
                at, source = producers[tensor]
                _draw_edge(axes, source, box, tensor, index - at)
            elif box is boxes[0]:
                _arrow(axes, [(box.x, box.y - HEIGHT / 2 - GAP_Y), (box.x, box.y - HEIGHT / 2)])
                axes.text(box.x + 0.06, box.y - HEIGHT / 2 - GAP_Y / 2, tensor, va='center', color=SOFT)


def _draw_box(axes: Axes, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    row = box.row
    convolution = row['op_type'] == 'SparseConvolution'
    kind = ('subm' if row['subm'] else 'conv') if convolution else row['op_type'].removeprefix('Quant')
    quantised = 'int8' in (row.get('precision'), row.get('output_precision'))
    axes.add_patch(
        FancyBboxPatch(
            (box.x - WIDTH / 2, box.y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle='round,pad=0,rounding_size=0.08',
            facecolor=FACES.get(kind, FACES['dense']),
            edgecolor=INT8_EDGE if quantised else LINE,
            linewidth=1.6 if quantised else 0.9,
        )
    )
    colour = 'white' if kind == 'conv' else '#1b2330'
    heading, rest = _texts(row)
    axes.text(
        box.x,
        box.y - (0.1 if rest else 0),
        heading,
        ha='center',
        va='center',
        fontweight='bold',
        color=colour,
    )
    if rest:
        axes.text(box.x, box.y + 0.15, rest, ha='center', va='center', fontsize=7, color=colour)


def _texts(row: dict[str, Any]) -> tuple[str, str]:
    """Return the two lines of a box."""
    precision = row.get('precision') or row.get('output_precision')
    words = [f'{row["precision"] or "fp16"} → {row["output_precision"] or "fp16"}'] if precision else []
    if row['op_type'] == 'SparseConvolution':
        channels = f'{row.get("in_channels", "?")} → {row.get("out_channels", "?")}'
        words = [by(row['kernel_size']), '' if row['subm'] else f'stride {by(row["stride"])}', *words]
        if row['activation'] not in ('', 'None'):
            words.append(row['activation'])
        return f'{row["name"]}   {channels}', ' · '.join(filter(None, words))
    if row.get('dense'):
        words = [row.get('format', ''), by(row.get('shape') or row.get('dims') or [])]
    return row['name'], ' · '.join(filter(None, words))


def _draw_edge(axes: Axes, source: Box, box: Box, tensor: str, steps: int) -> None:
    """Draw an arrow: straight down, around the boxes between, or over to the next column."""
    top = (box.x, box.y - HEIGHT / 2)
    if source.column != box.column:
        lane = box.x - WIDTH / 2 - GAP_X * 0.3
        start = (source.x + WIDTH / 2, source.y)
        above = box.y - HEIGHT / 2 - GAP_Y * 0.6
        _arrow(axes, [start, (lane, source.y), (lane, above), (box.x, above), top])
        axes.text(start[0] + 0.06, source.y - 0.1, tensor, color=SOFT)
    elif steps == 1:
        _arrow(axes, [(source.x, source.y + HEIGHT / 2), top])
        axes.text(box.x + 0.06, box.y - HEIGHT / 2 - GAP_Y / 2, tensor, va='center', color=SOFT)
    else:
        lane = box.x - WIDTH / 2 - GAP_X * 0.22
        left = box.x - WIDTH / 2
        _arrow(axes, [(left, source.y), (lane, source.y), (lane, box.y), (left, box.y)])


def _arrow(axes: Axes, points: list[tuple[float, float]]) -> None:
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=LINE, linewidth=1, solid_joinstyle='round')
    style = dict(arrowstyle='-|>', color=LINE, linewidth=1, shrinkA=0, shrinkB=0, mutation_scale=8)
    axes.annotate('', xy=points[-1], xytext=points[-2], arrowprops=style)


def _legend(axes: Axes, y: float) -> None:
    from matplotlib.patches import Patch

    names = {
        'subm': 'submanifold convolution',
        'conv': 'strided convolution',
        'Add': 'Add',
        'Relu': 'Relu',
        'dense': 'dense',
    }
    patches = [Patch(facecolor=FACES[name], edgecolor=LINE, label=label) for name, label in names.items()]
    patches.append(Patch(facecolor='white', edgecolor=INT8_EDGE, linewidth=1.6, label='int8'))
    x, width = axes.get_xlim()
    axes.legend(
        handles=patches,
        loc='center',
        bbox_to_anchor=((x + width) / 2, y),
        bbox_transform=axes.transData,
        ncols=len(patches),
        frameon=False,
    )
