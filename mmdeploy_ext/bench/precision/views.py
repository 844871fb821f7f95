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
    from mmdeploy_ext.bench.precision.fidelity import Fidelity

TITLES = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
          'int8 error', 'fp16 error', 'keep')  # fmt: skip


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


def fidelity_table(result: Fidelity, limit: int | None = None) -> Table:
    view = table(*TITLES, text_columns=2)
    fp16_layers = set(result.advice())
    for row in result.worst()[:limit]:
        view.add_row(
            row.name,
            escape(row.module),
            f'{row.local.cosine:.6f}',
            f'{row.local.error:.2%}',
            f'{row.clipped:.3%}',
            '-' if row.output is None else f'{row.output.error:.2%}',
            f'{row.int8.cosine:.6f}',
            f'{row.int8.error:.2%}',
            f'{row.fp16.error:.3%}',
            'fp16' if row.name in fp16_layers else '',
        )
    view.add_section()
    figures = f'{result.int8.cosine:.6f}', f'{result.int8.error:.2%}', f'{result.fp16.error:.3%}'
    view.add_row('output', *[''] * 5, *figures, '')
    return view
