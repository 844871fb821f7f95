"""INT8 of a dense graph for people: tables, and a chart of the layers, worst first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.quantize.dense_sensitivity import LayerHarm, Outputs

INT8_COLOUR, FLOAT_COLOUR = '#3b6ea5', '#e0973a'
SMALLEST, LARGEST = 1e-5, 10.0
"""Errors at which the chart's axis ends."""
TALLEST = 60
"""Layers that the chart shows at most."""


def layer_table(ranked: Sequence[LayerHarm], kept: Collection[str], limit: int | None = None) -> Table:
    """Return what each layer alone does to the outputs, worst first."""
    view = _table('one layer in INT8 at a time', ('layer', 'operator', 'weights', 'cosine', 'error', 'keep'))
    for harm in ranked[:limit]:
        view.add_row(
            escape(harm.layer.name),
            harm.layer.operator,
            f'{harm.layer.parameters:,}',
            f'{harm.outputs.cosine:.6f}',
            f'{harm.outputs.error:.3%}',
            'float' if harm.layer.name in kept else '',
        )
    return view


def output_table(outputs: Outputs) -> Table:
    """Return how near every output of the network is to float32's."""
    view = _table(
        'outputs of the network, INT8 against float32', ('output', 'cosine', 'error', 'largest error')
    )
    for name, difference in outputs.by_layer.items():
        view.add_row(
            escape(name),
            f'{difference.cosine:.6f}',
            f'{difference.error:.2%}',
            f'{difference.largest_error:.4g} of {difference.largest:.4g}',
        )
    return view


def _table(title: str, columns: Sequence[str]) -> Table:
    view = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        view.add_column(column, justify='left' if index == 0 else 'right')
    return view


def time_text(found: Mapping[str, Any]) -> str:
    """Return the ratio of times as a sentence."""
    ratio = found['ratio']
    text = (
        f'time: {ratio["median"]:.3f} of float32 (quartiles {ratio["q1"]:.3f} to {ratio["q3"]:.3f}; '
        f'{found["int8_ms"]["median"]:.1f} ms against {found["float_ms"]["median"]:.1f} ms, '
        f'{found["rounds"]} rounds in turn, {found["height"]}x{found["width"]}); '
        f'time on cores: {found["cpu_ratio"]["median"]:.3f}'
    )
    if (found['other_load'] or 0) > found['quiet_share']:
        text += f'; doubtful: other processes used {found["other_load"]:.0%} of the cores'
    return text


def draw(ranked: Sequence[LayerHarm], kept: Collection[str], path: str | Path, title: str) -> None:
    """Draw into a PNG file what each layer alone does, worst first."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(ranked)[:TALLEST]
    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(10, 1.6 + 0.2 * len(shown)), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        errors = [min(max(harm.outputs.error, SMALLEST), LARGEST) for harm in shown]
        errors = [error if math.isfinite(error) else LARGEST for error in errors]
        colours = [FLOAT_COLOUR if harm.layer.name in kept else INT8_COLOUR for harm in shown]
        axes.barh(range(len(shown)), errors, color=colours)
        axes.set_yticks(
            range(len(shown)),
            [f'{harm.layer.name}{" (stays float)" if harm.layer.name in kept else ""}' for harm in shown],
        )
        axes.invert_yaxis()
        axes.set_xlabel('error of the worst output with this layer alone in INT8 (norm over norm)')
        axes.spines[['top', 'right']].set_visible(False)
        axes.margins(y=0.01)
        axes.set_title(title, loc='left', fontsize=9)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=100)
