"""Fidelity for people: a table and a chart, worst layers first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mmdeploy_ext.quantize.difference import Difference
    from mmdeploy_ext.quantize.fidelity import Fidelity

KEPT_COLOUR, INT8_COLOUR, FP16_COLOUR = '#e0973a', '#3b6ea5', '#7a9e6e'
SMALLEST, LARGEST = 1e-6, 10.0
"""Errors at which the chart's axes end."""


def table(result: Fidelity, limit: int | None = None) -> Table:
    """Return the worst layers as a table: `fidelity.Row` says what the columns are."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    titles = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
              'int8 error', 'fp16 error', 'keep')  # fmt: skip
    for index, title in enumerate(titles):
        view.add_column(title, justify='left' if index < 2 else 'right')
    kept = set(result.advice())
    for row in result.worst()[:limit]:
        view.add_row(
            row.name,
            escape(row.module),
            f'{row.own.cosine:.6f}',
            f'{row.own.error:.2%}',
            f'{row.clipped:.3%}',
            _output(row.output),
            f'{row.int8.cosine:.6f}',
            f'{row.int8.error:.2%}',
            f'{row.fp16.error:.3%}',
            'fp16' if row.name in kept else '',
        )
    view.add_section()
    view.add_row('output', '', '', '', '', '', f'{result.int8.cosine:.6f}', f'{result.int8.error:.2%}',
                 f'{result.fp16.error:.3%}', '')  # fmt: skip
    return view


def draw(result: Fidelity, path: str | Path) -> None:
    """Draw into a PNG file: what each layer does, worst first, and how errors grow through the network."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(11, 2.2 + 0.2 * len(result.rows)), layout='constrained')
        FigureCanvasAgg(figure)
        harm, growth = figure.subplots(1, 2)
        _draw_harm(harm, result)
        _draw_growth(growth, result)
        figure.suptitle(
            f'output: cosine {result.int8.cosine:.5f} in int8, {result.fp16.cosine:.7f} in fp16; '
            f'{result.sweeps} sweep{"s" * (result.sweeps > 1)}, ranges by {result.calibrator}'
        )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=100)


def _draw_harm(axes: Axes, result: Fidelity) -> None:
    kept = set(result.advice())
    rows = result.worst()
    names = [f'{row.name} (keep fp16)' if row.name in kept else row.name for row in rows]
    colours = [KEPT_COLOUR if row.name in kept else INT8_COLOUR for row in rows]
    axes.barh(range(len(rows)), [_shown(row.harm) for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    alone = rows[0].output is not None
    what = "the network's output" if alone else "the layer's output"
    axes.set_title(f'error of {what} with this layer alone in int8', loc='left', fontsize=9)
    _finish(axes)


def _draw_growth(axes: Axes, result: Fidelity) -> None:
    rows = result.rows
    places = range(len(rows))
    axes.plot([_shown(row.int8.error) for row in rows], places, 'o-', color=INT8_COLOUR, label='int8', ms=4)
    axes.plot([_shown(row.fp16.error) for row in rows], places, 's-', color=FP16_COLOUR, label='fp16', ms=3)
    axes.set_xscale('log')
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_title("error of the layer's output, the network up to here in", loc='left', fontsize=9)
    axes.legend(loc='lower left', frameon=False)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set_xlabel('norm of the difference over the norm in fp32')
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(y=0.02)


def _shown(error: float) -> float:
    return min(max(error, SMALLEST), LARGEST) if math.isfinite(error) else LARGEST


def _output(found: Difference | None) -> str:
    return '-' if found is None else f'{found.error:.2%}'
