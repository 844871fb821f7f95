"""The sensitivity of a dense graph to INT8 as tables, and as a chart of its layers, worst first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mmdeploy_ext.quantize import views

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

    from mmdeploy_ext.quantize.dense_sensitivity import LayerSensitivity, Outputs

TALLEST = 60
"""Layers that the chart shows at most."""


def layer_table(ranked: Sequence[LayerSensitivity], kept: Collection[str], limit: int | None = None) -> Table:
    """Return a table of what each layer alone does to the outputs, worst first."""
    titles = ('layer', 'operator', 'weights', 'cosine', 'error', 'keep')
    view = views.table(*titles, title='one layer in INT8 at a time', title_justify='left')
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
    """Return a table of how near every output of the network is to float32's."""
    title = 'outputs of the network, INT8 against float32'
    titles = ('output', 'cosine', 'error', 'largest error')
    view = views.table(*titles, title=title, title_justify='left')
    for name, difference in outputs.by_layer.items():
        view.add_row(
            escape(name),
            f'{difference.cosine:.6f}',
            f'{difference.error:.2%}',
            f'{difference.largest_error:.4g} of {difference.largest:.4g}',
        )
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


def draw(ranked: Sequence[LayerSensitivity], kept: Collection[str], path: str | Path, title: str) -> None:
    """Draw into a PNG file what each layer alone does, worst first."""
    shown = list(ranked)[:TALLEST]
    with views.png(path, 10, 1.6 + 0.2 * len(shown)) as figure:
        axes = figure.subplots()
        errors = [harm.outputs.error for harm in shown]
        views.bars(axes, [harm.layer.name for harm in shown], errors, kept, 'stays float')
        axes.set_xlabel('error of the worst output with this layer alone in INT8 (norm over norm)')
        axes.set_title(title, loc='left', fontsize=9)
