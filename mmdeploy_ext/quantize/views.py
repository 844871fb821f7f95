"""What all tables and charts of layers share; charts go into PNG files, worst layers first."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INT8_COLOUR, KEPT_COLOUR = '#3b6ea5', '#e0973a'
SMALLEST, LARGEST = 1e-6, 10.0
"""Errors at which an axis ends."""


def table(*titles: str, left: int = 1, **options: str) -> Table:
    """Return an empty table whose first `left` columns are texts, the others figures."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), **options)
    for index, title in enumerate(titles):
        view.add_column(title, justify='left' if index < left else 'right')
    return view


@contextlib.contextmanager
def png(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of so many inches; it is written when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=100)


def bars(axes: Axes, names: Sequence[str], errors: Sequence[float], kept: Collection[str], note: str) -> None:
    """Draw the errors of layers as bars, the first one on top.

    Args:
        axes: to draw into.
        names: of the layers.
        errors: one per layer.
        kept: names of layers of another colour, with `note` behind them.
        note: what `kept` means.
    """
    colours = [KEPT_COLOUR if name in kept else INT8_COLOUR for name in names]
    axes.barh(range(len(names)), [shown(error) for error in errors], color=colours)
    finish(axes, [f'{name} ({note})' if name in kept else name for name in names])


def finish(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart, the first one on top, and leave lines away."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(y=0.02)


def shown(error: float) -> float:
    """Return an error within the axis."""
    return min(max(error, SMALLEST), LARGEST) if math.isfinite(error) else LARGEST
