"""Fidelity for people: a table and a chart, worst layers first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.files import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mmdeploy_ext.quantize.fidelity import Difference, Fidelity

OWN_COLOUR, INT8_COLOUR, FP16_COLOUR = '#e0973a', '#3b6ea5', '#7a9e6e'
SMALLEST = 1e-6
"""Error at which the chart's axis begins."""


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
    """Draw the relative errors of all layers, in the network's order, into a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 10}):
        figure = Figure(figsize=(9.5, 1.8 + 0.27 * len(result.rows)), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_rows(axes, result)
        axes.set_title(
            f'error against fp32, {result.sweeps} sweep{"s" * (result.sweeps > 1)}, ranges by '
            f'{result.calibrator}\noutput: cosine {result.int8.cosine:.5f} in int8, '
            f'{result.fp16.cosine:.7f} in fp16',
            loc='left',
            fontsize=10,
        )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=120)


def _draw_rows(axes: Axes, result: Fidelity) -> None:
    kept = set(result.advice())
    worst = {row.name for row in result.worst()[:3]}
    names = []
    for index, row in enumerate(result.rows):
        mark = ' (keep fp16)' if row.name in kept else ' (worst)' if row.name in worst else ''
        names.append(f'{row.name}{mark}')
        axes.barh(index, _shown(row.own.error), 0.7, color=OWN_COLOUR, alpha=0.9)
    places = range(len(names))
    axes.plot([_shown(row.int8.error) for row in result.rows], places, 'o-', color=INT8_COLOUR, markersize=4)
    axes.plot([_shown(row.fp16.error) for row in result.rows], places, 's-', color=FP16_COLOUR, markersize=3)
    axes.barh([0], [0], color=OWN_COLOUR, label='int8, this layer alone')
    axes.plot([], [], 'o-', color=INT8_COLOUR, label='int8, network up to here')
    axes.plot([], [], 's-', color=FP16_COLOUR, label='fp16, network up to here')
    axes.set_xscale('log')
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel('norm of the difference over the norm of the fp32 output of the layer')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='upper center', bbox_to_anchor=(0.4, -0.07), ncols=3, frameon=False)


def _shown(error: float) -> float:
    return min(max(error, SMALLEST), 10.0)


def _output(found: Difference | None) -> str:
    return '-' if found is None else f'{found.error:.2%}'
