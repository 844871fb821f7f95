"""What INT8 does to layers and outputs, as tables and as charts in PNG files, worst layers first."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.core.printable import escape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mmdeploy_ext.quantize.dense_sensitivity import LayerSensitivity, Outputs
    from mmdeploy_ext.quantize.fidelity import Fidelity, Finding

INT8_COLOUR, KEPT_COLOUR, FP16_COLOUR = '#3b6ea5', '#e0973a', '#7a9e6e'
TALLEST = 60
"""Layers that the chart of a dense graph shows at most."""
SMALLEST, LARGEST = 1e-6, 10.0
"""Errors at which an axis ends."""
ERROR = 'norm of the difference over the norm in fp32'
TITLES = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
          'int8 error', 'fp16 error', 'keep')  # fmt: skip


def table(*titles: str, left: int = 1, **options: str | None) -> Table:
    """Return an empty table whose first `left` columns are texts, the others figures."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), **options)
    for index, title in enumerate(titles):
        view.add_column(title, justify='left' if index < left else 'right')
    return view


@contextlib.contextmanager
def png(path: str | Path, width: float, height: float, font: int = 9, dpi: int = 100) -> Iterator[Figure]:
    """Yield a figure of so many inches; it is written when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': font}):
        figure = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=dpi)


def bars(axes: Axes, names: Sequence[str], errors: Sequence[float], kept: Collection[str], note: str) -> None:
    """Draw the errors of layers as bars, the first on top, those of `kept` in another colour with a note."""
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


def layer_table(ranked: Sequence[LayerSensitivity], kept: Collection[str], limit: int | None = None) -> Table:
    """Return a table of what each layer alone does to the outputs, worst first."""
    titles = ('layer', 'operator', 'weights', 'cosine', 'error', 'keep')
    view = table(*titles, title='one layer in INT8 at a time', title_justify='left')
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
    view = table(*titles, title=title, title_justify='left')
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


def draw_layers(
    ranked: Sequence[LayerSensitivity], kept: Collection[str], path: str | Path, title: str
) -> None:
    """Draw into a PNG file what each layer alone does, worst first."""
    worst = ranked[:TALLEST]
    with png(path, 10, 1.6 + 0.2 * len(worst)) as figure:
        axes = figure.subplots()
        errors = [harm.outputs.error for harm in worst]
        bars(axes, [harm.layer.name for harm in worst], errors, kept, 'stays float')
        axes.set_xlabel('error of the worst output with this layer alone in INT8 (norm over norm)')
        axes.set_title(title, loc='left', fontsize=9)


def fidelity_table(result: Fidelity, limit: int | None = None) -> Table:
    """Return the worst layers as a table: `fidelity.Row` says what the columns are."""
    view = table(*TITLES, left=2)
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


def draw_fidelity(result: Fidelity, path: str | Path) -> None:
    """Draw into a PNG file: what each layer does, worst first, and how errors grow through the network."""
    with png(path, 11, 2.2 + 0.2 * len(result.rows)) as figure:
        layers, growth = figure.subplots(1, 2)
        rows = result.worst()
        errors = [row.sensitivity for row in rows]
        bars(layers, [row.name for row in rows], errors, result.advice(), 'keep fp16')
        what = "the network's output" if rows[0].output is not None else "the layer's output"
        layers.set_title(f'error of {what} with this layer alone in int8', loc='left', fontsize=9)
        layers.set_xlabel(ERROR)
        _draw_growth(growth, result)
        figure.suptitle(
            f'output: cosine {result.int8.cosine:.5f} in int8, {result.fp16.cosine:.7f} in fp16; '
            f'{result.sweeps} sweep{"s" * (result.sweeps > 1)}, ranges by {result.calibrator}'
        )


def _draw_growth(axes: Axes, result: Fidelity) -> None:
    for kind, look, colour, size in (('int8', 'o-', INT8_COLOUR, 4), ('fp16', 's-', FP16_COLOUR, 3)):
        errors = [shown(getattr(row, kind).error) for row in result.rows]
        axes.plot(errors, range(len(errors)), look, color=colour, label=kind, ms=size)
    axes.set_xscale('log')
    axes.set_title("error of the layer's output, the network up to here in", loc='left', fontsize=9)
    axes.legend(loc='lower left', frameon=False)
    axes.set_xlabel(ERROR)
    finish(axes, [row.name for row in result.rows])


def assumption_table(findings: Iterable[Finding]) -> Table:
    """Return the findings as a table."""
    view = table('what the engine may do', 'cosine', 'error', 'away from the tables')
    for finding in findings:
        figures = f'{finding.fp32.cosine:.6f}', f'{finding.fp32.error:.2%}', f'{finding.default.error:.2%}'
        view.add_row(finding.assumption.title, *figures)
    return view
