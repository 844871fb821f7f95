"""What a benchmark found, for people: tables and a bar chart. The input is the content of the JSON file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Console

NETWORK_COLOUR, POSTPROCESS_COLOUR = '#3b6ea5', '#e0973a'


def headline(result: Mapping[str, Any]) -> str:
    """Return one line: what was measured on what."""
    machine = result['machine']
    return (
        f'{result["config"]}, input {result["input_shape"]}, {result["threads"]} threads, '
        f'{result["processes"]} process{"es" * (result["processes"] > 1)}, '
        f'{result["rounds"]} interleaved rounds; {machine["cpu"]}, {machine["cores"]} cores'
    )


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, title in enumerate(titles):
        table.add_column(title, justify='left' if index == 0 else 'right')
    return table


def _median(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["median"]:.{digits}f}'


def _quartiles(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["q1"]:.{digits}f} .. {figures["q3"]:.{digits}f}'


def _contender_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        'engine',
        'median ms',
        'quartiles',
        'MAD',
        'vs PyTorch',
        'quartiles',
        'network',
        'post-process',
        'images/s',
        'found',
        'peak MB',
    )
    for row in rows:
        total, ratio, memory = row['total_ms'], row['ratio_to_torch'], row['memory']
        table.add_row(
            escape(row['name']),
            f'[bold]{_median(total)}[/bold]',
            _quartiles(total),
            f'{total["mad"]:.1f}',
            '-' if ratio is None else f'[bold]{ratio["median"]:.3f}x[/bold]',
            _quartiles(ratio, 3),
            _median(row['network_ms']),
            _median(row['postprocess_ms']),
            f'{row["images_per_s"]:.2f}',
            f'{row["detections_per_image"]:g}',
            '-' if memory is None else f'{memory["peak_mb"]:.0f}',
        )
    return table


def _part_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the parts of a frame of streaming models, in ms."""
    parts = list(dict.fromkeys(part for row in rows for part in row['parts_ms']))
    table = _table('median ms per frame', *parts, 'fed besides images')
    for row in rows:
        fed = '-' if row['fed_bytes'] is None else f'{row["fed_bytes"] / 1e3:.1f} kB'
        table.add_row(
            escape(row['name']),
            *(f'{row["parts_ms"][part]:.1f}' if part in row['parts_ms'] else '-' for part in parts),
            fed,
        )
    return table


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables; `result` is what `--json` writes."""
    console.print(escape(headline(result)), soft_wrap=True)
    console.print(_contender_table(result['contenders']))
    for row in result['forms']:
        cost = row['postprocess_in_graph_ms']
        console.print(
            f'{escape(row["graph"])} against {escape(row["raw"])}, graphs alone: '
            f'{row["ratio"]["median"]:.3f}x '
            f'({_quartiles(row["ratio"], 3)}); its post-processing: {_median(cost, 2)} ms '
            f'({_quartiles(cost, 2)})',
            soft_wrap=True,
        )
    if any('parts_ms' in row for row in result['contenders']):
        console.print(_part_table(result['contenders']))
    if result.get('deploy_to_fork'):
        ratio = result['deploy_to_fork']
        console.print(
            f'deploy contract against fork contract: {ratio["median"]:.3f}x ({_quartiles(ratio, 3)})',
            soft_wrap=True,
        )
    if result.get('bars'):
        console.print('bars of the deploy contract, set for StreamPETR R50 at 704x256 on a CPU:')
    for bar in result.get('bars', ()):
        mark = '[green]ok[/green]' if bar['passed'] else '[bold red]MISSED[/bold red]'
        console.print(f'  {mark} {escape(bar["name"])}: {bar["value"]:g} (at most {bar["bar"]:g})')
    if result['preprocess_ms']:
        console.print(
            f'pre-processing, the same for all and not in the times: {_median(result["preprocess_ms"], 2)} ms'
        )
    for row in result.get('refused', ()):
        line = f'left out: {row["engine"]} {row["label"]}: {row["reason"]}'
        console.print(escape(line), soft_wrap=True)
    for note in result['notes']:
        console.print(f'note: {escape(note)}', soft_wrap=True)
    for name, profile in result['profiles'].items():
        print_profile(name, profile, console)


def print_profile(name: str, profile: Mapping[str, Any], console: Console) -> None:
    """Print the operators that take the most time."""
    parts = ', '.join(f'{part["name"]} {part["ms"]:.1f} ms' for part in profile['parts'][:4])
    console.print(
        f'\n{escape(name)}: profile of {profile["runs"]} runs in a session of its own ({escape(parts)})',
        soft_wrap=True,
    )
    table = _table('operator', 'calls', 'ms per run', 'share')
    for row in profile['operators']:
        table.add_row(escape(row['name']), f'{row["calls"]:g}', f'{row["ms"]:.2f}', f'{row["share"]:.1%}')
    console.print(table)


def write_chart(result: Mapping[str, Any], target: str | Path) -> None:
    """Draw medians as bars, with quartiles and the ratio to PyTorch, into a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result['contenders']
    with matplotlib.rc_context({'font.size': 11}):
        figure = Figure(figsize=(9.5, 1.9 + 0.62 * len(rows)), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _bars(axes, rows)
        what = f'{result["config"]}, input {result["input_shape"]}'
        where = f'{result["threads"]} threads of {result["machine"]["cpu"]}, {result["rounds"]} rounds'
        axes.set_title(f'{what}\n{where}', loc='left', fontsize=11)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format='png', dpi=120)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row['name'] for row in rows]
    totals = [row['total_ms']['median'] for row in rows]
    networks = [
        total if row['network_ms'] is None else min(row['network_ms']['median'], total)
        for row, total in zip(rows, totals, strict=True)
    ]
    rests = [total - network for total, network in zip(totals, networks, strict=True)]
    axes.barh(names, networks, color=NETWORK_COLOUR, label='network (graph)')
    axes.barh(names, rests, left=networks, color=POSTPROCESS_COLOUR, label='post-process outside the graph')
    whiskers = [
        [row['total_ms']['median'] - row['total_ms']['q1'] for row in rows],
        [row['total_ms']['q3'] - row['total_ms']['median'] for row in rows],
    ]
    axes.errorbar(totals, names, xerr=whiskers, fmt='none', ecolor='#222222', capsize=4, linewidth=1.2)
    for row, total in zip(rows, totals, strict=True):
        ratio = '' if row['ratio_to_torch'] is None else f'   {row["ratio_to_torch"]["median"]:.2f}x'
        axes.annotate(
            f'{total:.1f} ms{ratio}',
            (max(total, row['total_ms']['q3']), row['name']),
            xytext=(8, 0),
            textcoords='offset points',
            va='center',
        )
    axes.invert_yaxis()
    axes.set_xlim(0, max(row['total_ms']['q3'] for row in rows) * 1.3)
    axes.set_xlabel('ms per batch: median, whiskers are quartiles; shorter is better')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(
        loc='upper center', bbox_to_anchor=(0.5, -0.28 if len(rows) < 4 else -0.18), ncols=2, frameon=False
    )
