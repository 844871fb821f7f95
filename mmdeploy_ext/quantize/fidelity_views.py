"""The result of `fidelity` as a table and a chart, worst layers first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from mmdeploy_ext.quantize import views

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.table import Table

    from mmdeploy_ext.quantize.fidelity import Fidelity

FP16_COLOUR = '#7a9e6e'
ERROR = 'norm of the difference over the norm in fp32'
TITLES = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
          'int8 error', 'fp16 error', 'keep')  # fmt: skip


def table(result: Fidelity, limit: int | None = None) -> Table:
    """Return the worst layers as a table: `fidelity.Row` says what the columns are."""
    view = views.table(*TITLES, left=2)
    kept = set(result.advice())
    for row in result.worst()[:limit]:
        view.add_row(
            row.name,
            escape(row.module),
            f'{row.own.cosine:.6f}',
            f'{row.own.error:.2%}',
            f'{row.clipped:.3%}',
            '-' if row.output is None else f'{row.output.error:.2%}',
            f'{row.int8.cosine:.6f}',
            f'{row.int8.error:.2%}',
            f'{row.fp16.error:.3%}',
            'fp16' if row.name in kept else '',
        )
    view.add_section()
    whole = f'{result.int8.cosine:.6f}', f'{result.int8.error:.2%}', f'{result.fp16.error:.3%}'
    view.add_row('output', *[''] * 5, *whole, '')
    return view


def draw(result: Fidelity, path: str | Path) -> None:
    """Draw into a PNG file: what each layer does, worst first, and how errors grow through the network."""
    with views.png(path, 11, 2.2 + 0.2 * len(result.rows)) as figure:
        layers, growth = figure.subplots(1, 2)
        rows = result.worst()
        errors = [row.sensitivity for row in rows]
        views.bars(layers, [row.name for row in rows], errors, result.advice(), 'keep fp16')
        what = "the network's output" if rows[0].output is not None else "the layer's output"
        layers.set_title(f'error of {what} with this layer alone in int8', loc='left', fontsize=9)
        layers.set_xlabel(ERROR)
        _draw_growth(growth, result)
        figure.suptitle(
            f'output: cosine {result.int8.cosine:.5f} in int8, {result.fp16.cosine:.7f} in fp16; '
            f'{result.sweeps} sweep{"s" * (result.sweeps > 1)}, ranges by {result.calibrator}'
        )


def _draw_growth(axes: Axes, result: Fidelity) -> None:
    for kind, look, colour, size in (('int8', 'o-', views.INT8_COLOUR, 4), ('fp16', 's-', FP16_COLOUR, 3)):
        errors = [views.shown(getattr(row, kind).error) for row in result.rows]
        axes.plot(errors, range(len(errors)), look, color=colour, label=kind, ms=size)
    axes.set_xscale('log')
    axes.set_title("error of the layer's output, the network up to here in", loc='left', fontsize=9)
    axes.legend(loc='lower left', frameon=False)
    axes.set_xlabel(ERROR)
    views.finish(axes, [row.name for row in result.rows])
