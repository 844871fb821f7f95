"""Tables of INT8's errors, worst layers first, and an empty table and chart."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from mmdeploy_ext.base.errors import escape
from mmdeploy_ext.base.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from mmdeploy_ext.bench.precision.damage import Difference


def table(*titles: str, text_columns: int = 1, **options: str | None) -> Table:
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), **options)
    for index, title in enumerate(titles):
        view.add_column(title, justify='left' if index < text_columns else 'right')
    return view


@contextlib.contextmanager
def png(path: str | Path, width: float, height: float, font: int = 9, dpi: int = 100) -> Iterator[Figure]:
    """Yield a figure (inches, points), written to `path` unless the block raises."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': font}):
        figure = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=dpi)


def output_table(outputs: Mapping[str, Difference]) -> Table:
    title = 'outputs of the network, INT8 against float32'
    titles = ('output', 'cosine', 'error', 'largest error')
    view = table(*titles, title=title, title_justify='left')
    for name, difference in outputs.items():
        view.add_row(
            escape(name),
            f'{difference.cosine:.6f}',
            f'{difference.error:.2%}',
            f'{difference.largest_error:.4g} of {difference.largest:.4g}',
        )
    return view


def time_text(times: Mapping[str, Any]) -> str:
    """Line about INT8's time, from `bench.benchmark.measure.time_files`.

    `ratio` and `cpu_ratio`: INT8 over float32; dicts have `median`, `q1`, `q3`. `other_load`: other
    processes' share of the cores; `quiet_share`: its bound for trusted times.
    """
    ratio = times['ratio']
    text = (
        f'time: {ratio["median"]:.3f} of float32 (quartiles {ratio["q1"]:.3f} to {ratio["q3"]:.3f}; '
        f'{times["int8_ms"]["median"]:.1f} ms against {times["float_ms"]["median"]:.1f} ms, '
        f'{times["rounds"]} rounds in turn, {times["height"]}x{times["width"]}); '
        f'time on cores: {times["cpu_ratio"]["median"]:.3f}'
    )
    if (times['other_load'] or 0) > times['quiet_share']:
        text += f'; unreliable: other processes used {times["other_load"]:.0%} of the cores'
    return text
