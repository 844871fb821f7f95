"""Tables and PNG charts of the errors of INT8 in layers and outputs, worst layers first."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from mmdeploy_ext.core.errors import escape
from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mmdeploy_ext.quantize.dense_sensitivity import LayerSensitivity, Outputs
    from mmdeploy_ext.quantize.fidelity import Fidelity, Finding

INT8_COLOUR, FLOAT_COLOUR, FP16_COLOUR = '#3b6ea5', '#e0973a', '#7a9e6e'
"""Colours of bars and curves in charts."""
MAX_BARS = 60
"""Largest number of layers that the chart of a dense graph shows, the most sensitive ones."""
MIN_ERROR, MAX_ERROR = 1e-6, 10.0
"""Smallest and largest error that a chart draws; errors beyond are drawn as these."""
ERROR = 'norm of the difference over the norm in fp32'
"""Label of axes with errors."""
TITLES = ('layer', 'module', 'own cosine', 'own error', 'clipped', 'output alone', 'int8 cosine',
          'int8 error', 'fp16 error', 'keep')  # fmt: skip
"""Columns of `fidelity_table`, from these attributes of `fidelity.Row`: `name`, `module`, `local` (two),
`clipped` (share of its input beyond the range), `output`, `int8` (two), `fp16`. The last column says whether
the layer should stay in fp16."""


def table(*titles: str, text_columns: int = 1, **options: str | None) -> Table:
    """Return an empty table with these titles of columns; `options` are those of rich's `Table`.

    The first `text_columns` hold left-aligned texts, the others figures.
    """
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), **options)
    for index, title in enumerate(titles):
        view.add_column(title, justify='left' if index < text_columns else 'right')
    return view


@contextlib.contextmanager
def png(path: str | Path, width: float, height: float, font: int = 9, dpi: int = 100) -> Iterator[Figure]:
    """Yield a figure, which is written to `path` when the block ends, and not if it raises an exception.

    Width and height are in inches, the size of the font in points, `dpi` is pixels per inch. A missing folder
    is made; `core.files.atomic_path` has the errors.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': font}):
        figure = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format='png', dpi=dpi)


def draw_bars(
    axes: Axes, names: Sequence[str], errors: Sequence[float], float_names: Collection[str], note: str
) -> None:
    """Draw the errors of layers (`names`) as bars into matplotlib's `axes`, the first on top.

    Those among `float_names`, which stay float, get another colour and the note behind their names.
    """
    colours = [FLOAT_COLOUR if name in float_names else INT8_COLOUR for name in names]
    axes.barh(range(len(names)), [clip_error(error) for error in errors], color=colours)
    label_rows(axes, [f'{name} ({note})' if name in float_names else name for name in names])


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of a chart with names, the first one on top, and hide its upper and right edge."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(y=0.02)


def clip_error(error: float) -> float:
    """Return an error clipped to `MIN_ERROR` and `MAX_ERROR`; of NaN and infinity it is `MAX_ERROR`."""
    return min(max(error, MIN_ERROR), MAX_ERROR) if math.isfinite(error) else MAX_ERROR


def layer_table(
    ranked: Sequence[LayerSensitivity], float_names: Collection[str], limit: int | None = None
) -> Table:
    """Return a table of the sensitivities of layers.

    Args:
        ranked: worst layer first.
        float_names: names of the layers that stay in float.
        limit: largest number of rows; None for all.
    """
    titles = ('layer', 'operator', 'weights', 'cosine', 'error', 'keep')
    view = table(*titles, title='one layer in INT8 at a time', title_justify='left')
    for sensitivity in ranked[:limit]:
        layer, outputs = sensitivity.layer, sensitivity.outputs
        view.add_row(
            escape(layer.name),
            layer.operator,
            f'{layer.parameters:,}',
            f'{outputs.cosine:.6f}',
            f'{outputs.error:.3%}',
            'float' if layer.name in float_names else '',
        )
    return view


def output_table(outputs: Outputs) -> Table:
    """Return a table of the differences from float32, a row for all outputs of a last layer together."""
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


def time_text(times: Mapping[str, Any]) -> str:
    """Return a line of text about INT8's time; `times` is what `benchmark.measure.time_files` returned.

    `ratio` is INT8's time over float32's, `cpu_ratio` the same of the CPU time, `float_ms` and `int8_ms` are
    the times, all of them dicts with `median`, `q1` and `q3`; `other_load` is the share of the cores that
    other processes used, or None, and `quiet_share` that up to which times are not doubtful.
    """
    ratio = times['ratio']
    text = (
        f'time: {ratio["median"]:.3f} of float32 (quartiles {ratio["q1"]:.3f} to {ratio["q3"]:.3f}; '
        f'{times["int8_ms"]["median"]:.1f} ms against {times["float_ms"]["median"]:.1f} ms, '
        f'{times["rounds"]} rounds in turn, {times["height"]}x{times["width"]}); '
        f'time on cores: {times["cpu_ratio"]["median"]:.3f}'
    )
    if (times['other_load'] or 0) > times['quiet_share']:
        text += f'; doubtful: other processes used {times["other_load"]:.0%} of the cores'
    return text


def draw_layers(
    ranked: Sequence[LayerSensitivity], float_names: Collection[str], path: str | Path, title: str
) -> None:
    """Draw the sensitivities of the `MAX_BARS` worst layers into the PNG file `path`, worst first.

    Args:
        ranked: layers with the error of the outputs if they alone are in INT8, the most sensitive first.
        float_names: names of the layers that stay float, which get another colour.
        path: path of the file.
        title: title of the chart.
    """
    worst = ranked[:MAX_BARS]
    with png(path, 10, 1.6 + 0.2 * len(worst)) as figure:
        axes = figure.subplots()
        errors = [sensitivity.outputs.error for sensitivity in worst]
        names = [sensitivity.layer.name for sensitivity in worst]
        draw_bars(axes, names, errors, float_names, 'stays float')
        axes.set_xlabel('error of the worst output with this layer alone in INT8 (norm over norm)')
        axes.set_title(title, loc='left', fontsize=9)


def fidelity_table(result: Fidelity, limit: int | None = None) -> Table:
    """Return a table of a result: the worst layers, at most `limit`, and the network's output; see `TITLES`.

    `limit` of None shows all layers.
    """
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


def draw_fidelity(result: Fidelity, path: str | Path) -> None:
    """Draw the PNG file `path`: the sensitivity of each layer, worst first, and the error at each depth.

    `result` has one row or more.
    """
    with png(path, 11, 2.2 + 0.2 * len(result.rows)) as figure:
        layers, growth = figure.subplots(1, 2)
        rows = result.worst()
        errors = [row.sensitivity for row in rows]
        draw_bars(layers, [row.name for row in rows], errors, result.advice(), 'keep fp16')
        output = "the network's output" if rows[0].output is not None else "the layer's output"
        layers.set_title(f'error of {output} with this layer alone in int8', loc='left', fontsize=9)
        layers.set_xlabel(ERROR)
        int8_errors = [clip_error(row.int8.error) for row in result.rows]
        fp16_errors = [clip_error(row.fp16.error) for row in result.rows]
        depths = range(len(result.rows))
        growth.plot(int8_errors, depths, 'o-', color=INT8_COLOUR, label='int8', ms=4)
        growth.plot(fp16_errors, depths, 's-', color=FP16_COLOUR, label='fp16', ms=3)
        growth.set_xscale('log')
        growth.set_title("error of the layer's output, the network up to here in", loc='left', fontsize=9)
        growth.legend(loc='lower left', frameon=False)
        growth.set_xlabel(ERROR)
        label_rows(growth, [row.name for row in result.rows])
        sweeps = '1 sweep' if result.sweeps == 1 else f'{result.sweeps} sweeps'
        figure.suptitle(
            f'output: cosine {result.int8.cosine:.5f} in int8, {result.fp16.cosine:.7f} in fp16; '
            f'{sweeps}, ranges by {result.calibrator}'
        )


def assumption_table(findings: Iterable[Finding]) -> Table:
    """Return a table of findings: the output's cosine with fp32 and errors under each assumption.

    An assumption is about how an engine rounds and stores int8, see `fidelity.ASSUMPTIONS`. The last column
    is the error from the output under the default assumption, which the other tables show.
    """
    view = table('what the engine may do', 'cosine', 'error', 'away from the tables')
    for finding in findings:
        figures = f'{finding.fp32.cosine:.6f}', f'{finding.fp32.error:.2%}', f'{finding.default.error:.2%}'
        view.add_row(finding.assumption.title, *figures)
    return view
