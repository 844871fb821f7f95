"""Tables and charts of a benchmark, made of the content of its JSON file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from mmdeploy_ext.quantize import views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

    Row = Mapping[str, Any]
    """JSON object of a benchmark."""
    Columns = Mapping[str, Callable[[Row], str]]
    """Title of a column -> function that returns the text of its cell in a row."""

NETWORK_COLOUR, POSTPROCESS_COLOUR = '#3b6ea5', '#e0973a'
"""Colours of the two parts of a bar: time of the network, and of the post-processing."""


def headline(result: Row) -> str:
    """Return config, input, threads, processes, rounds and machine in one line."""
    machine = f'{result["machine"]["cpu"]}, {result["machine"]["cores"]} cores'
    if 'grid' in result:
        return f'{result["config"]}, grid {result["grid"]}; {machine}'
    processes = '1 process' if result['processes'] == 1 else f'{result["processes"]} processes'
    return (
        f'{result["config"]}, input {result["input_shape"]}, {result["threads"]} threads, {processes}, '
        f'{result["rounds"]} interleaved rounds; {machine}'
    )


def _table(rows: Sequence[Row], columns: Columns, title: str | None = None) -> Table:
    table = views.table(*map(str.strip, columns), title=title, title_justify='left', title_style='bold')
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def _median(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["median"]:.{digits}f}'


def _quartiles(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["q1"]:.{digits}f} .. {figures["q3"]:.{digits}f}'


def _ratio(row: Row) -> str:
    ratio = row['ratio_to_torch']
    return '-' if ratio is None else f'[bold]{ratio["median"]:.3f}x[/bold]'


COLUMNS: Columns = {
    'engine': lambda row: escape(row['name']),
    'median ms': lambda row: f'[bold]{_median(row["total_ms"])}[/bold]',
    'quartiles': lambda row: _quartiles(row['total_ms']),
    'MAD': lambda row: f'{row["total_ms"]["mad"]:.1f}',
    'vs PyTorch': _ratio,
    'quartiles ': lambda row: _quartiles(row['ratio_to_torch'], 3),
    'network': lambda row: _median(row['network_ms']),
    'post-process': lambda row: _median(row['postprocess_ms']),
    'images/s': lambda row: f'{row["images_per_s"]:.2f}',
    'found': lambda row: f'{row["detections_per_image"]:g}',
    'peak MB': lambda row: f'{row["memory"]["peak_mb"]:.0f}' if row['memory'] else '-',
}
PROFILE_COLUMNS: Columns = {
    'operator': lambda row: escape(row['name']),
    'calls': lambda row: f'{row["calls"]:g}',
    'ms per run': lambda row: f'{row["ms"]:.2f}',
    'share': lambda row: f'{row["share"]:.1%}',
}
"""Columns of the table of operators."""


def _part_columns(rows: Sequence[Row]) -> Columns:
    parts = dict.fromkeys(part for row in rows for part in row['parts_ms'])

    def cell(part: str) -> Callable[[Row], str]:
        return lambda row: f'{row["parts_ms"][part]:.1f}' if part in row['parts_ms'] else '-'

    return {
        'median ms': COLUMNS['engine'],
        **{part: cell(part) for part in parts},
        'fed besides images': lambda row: (
            '-' if row['fed_bytes'] is None else f'{row["fed_bytes"] / 1e3:.1f} kB'
        ),
    }


def print_result(result: Row, console: Console) -> None:
    """Print the tables on a console; `result` is the content of the JSON file."""

    def show(*parts: str | Table) -> None:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))

    show(escape(headline(result)))
    for entry in result.get('sets', [result]):
        title = f'{entry["name"]}: {entry["voxels"]} voxels' if 'sets' in result else None
        show(_table(entry['contenders'], COLUMNS, title))
        if any(row['parts_ms'] for row in entry['contenders']):
            show(_table(entry['contenders'], _part_columns(entry['contenders'])))
    for row in result['forms']:
        cost = row['postprocess_in_graph_ms']
        show(
            f'{escape(row["graph"])} against {escape(row["raw"])}, graphs alone: '
            f'{row["ratio"]["median"]:.3f}x '
            f'({_quartiles(row["ratio"], 3)}); its post-processing: {_median(cost, 2)} ms '
            f'({_quartiles(cost, 2)})'
        )
    if preprocess_ms := result['preprocess_ms']:
        console.print(
            f'pre-processing, the same for all and not in the times: {_median(preprocess_ms, 2)} ms'
        )
    for row in result['refused']:
        show(escape(f'left out: {row["engine"]} {row["label"]}: {row["reason"]}'))
    for note in result['notes']:
        show(f'note: {escape(note)}')
    for name, profile in result['profiles'].items():
        parts = ', '.join(f'{part["name"]} {part["ms"]:.1f} ms' for part in profile['parts'][:4])
        runs = f'profile of {profile["runs"]} runs in a session of its own'
        show(f'\n{escape(name)}: {runs} ({escape(parts)})', _table(profile['operators'], PROFILE_COLUMNS))


def write_chart(result: Row, target: str | Path) -> None:
    """Draw the content of a JSON file into a PNG: a bar for each contender, of the last set of voxels."""
    rows = result['sets'][-1]['contenders'] if 'sets' in result else result['contenders']
    with views.png(target, 9.5, 1.9 + 0.62 * len(rows), font=11, dpi=120) as figure:
        _draw_bars(result, rows, figure.add_subplot())


def _draw_bars(result: Row, rows: Sequence[Row], axes: Axes) -> None:
    title = headline(result).replace('; ', '\n').replace(', input', '\ninput')
    axes.set_title(title, loc='left', fontsize=11)
    names = [row['name'] for row in rows]
    totals = [row['total_ms']['median'] for row in rows]
    networks = [
        total if row['network_ms'] is None else min(row['network_ms']['median'], total)
        for row, total in zip(rows, totals, strict=True)
    ]
    postprocess = [total - network for total, network in zip(totals, networks, strict=True)]
    axes.barh(names, networks, color=NETWORK_COLOUR, label='network (graph)')
    label = 'post-process outside the graph'
    axes.barh(names, postprocess, left=networks, color=POSTPROCESS_COLOUR, label=label)
    q1, q3 = ([row['total_ms'][name] for row in rows] for name in ('q1', 'q3'))
    whiskers = np.abs(np.subtract([q1, q3], totals)).tolist()
    axes.errorbar(totals, names, xerr=whiskers, fmt='none', ecolor='#222222', capsize=4, linewidth=1.2)
    for row, total in zip(rows, totals, strict=True):
        ratio = '' if row['ratio_to_torch'] is None else f'   {row["ratio_to_torch"]["median"]:.2f}x'
        end = max(total, row['total_ms']['q3']), row['name']
        axes.annotate(f'{total:.1f} ms{ratio}', end, xytext=(8, 0), textcoords='offset points', va='center')
    axes.invert_yaxis()
    axes.set_xlim(0, max(q3) * 1.3)
    axes.set_xlabel('ms per batch: median, whiskers are quartiles; shorter is better')
    axes.spines[['top', 'right']].set_visible(False)
    legend_y = -0.28 if len(rows) < 4 else -0.18
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, legend_y), ncols=2, frameon=False)
