"""Table and chart of a benchmark's JSON file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import escape
from mmdeploy_ext.bench.precision import views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Console

    Row = Mapping[str, Any]

NETWORK_COLOUR, POSTPROCESS_COLOUR = '#3b6ea5', '#e0973a'


def headline(result: Row) -> str:
    """Config, input, threads, processes, rounds and machine in one line."""
    machine = f'{result["machine"]["cpu"]}, {result["machine"]["cores"]} cores'
    processes = '1 process' if result['processes'] == 1 else f'{result["processes"]} processes'
    return (
        f'{result["config"]}, input {result["input_shape"]}, {result["threads"]} threads, {processes}, '
        f'{result["rounds"]} interleaved rounds; {machine}, at most {result["peak_gmac_per_s"]:g} GMAC/s'
    )


def _median(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["median"]:.{digits}f}'


def _quartiles(figures: Mapping[str, float] | None, digits: int = 1) -> str:
    return '-' if figures is None else f'{figures["q1"]:.{digits}f} .. {figures["q3"]:.{digits}f}'


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Title of a column -> text of its cell in a row; empty columns are left out."""
    columns: dict[str, Callable[[Row], str]] = {
        'input': lambda row: escape(row['input']) or '-',
        'median ms': lambda row: f'[bold]{_median(row["total_ms"])}[/bold]',
        'quartiles': lambda row: _quartiles(row['total_ms']),
        'vs PyTorch': lambda row: (
            f'[bold]{_median(row["ratio_to_torch"], 3)}x[/bold]' if row['ratio_to_torch'] else '-'
        ),
        'quartiles ': lambda row: _quartiles(row['ratio_to_torch'], 3),
        'network': lambda row: _median(row['network_ms']),
        'post-process': lambda row: _median(row['postprocess_ms']),
        'images/s': lambda row: f'{row["images_per_s"]:.2f}',
        'GMAC': lambda row: f'{row["gmac"]:.1f}' if row['gmac'] else '-',
        'GMAC/s': lambda row: f'{row["gmac_per_s"]:.1f}' if row['gmac_per_s'] else '-',
        'found': lambda row: f'{row["detections_per_image"]:g}',
        'peak MB': lambda row: f'{row["memory"]["peak_mb"]:.0f}' if row['memory'] else '-',
    }
    for part in dict.fromkeys(part for row in rows for part in row['parts_ms']):
        columns.setdefault(part, lambda row, part=part: f'{row["parts_ms"].get(part, 0):.1f}')
    columns['fed besides images'] = lambda row: (
        '-' if row['fed_bytes'] is None else f'{row["fed_bytes"] / 1e3:.1f} kB'
    )
    return {title: cell for title, cell in columns.items() if any(cell(row) != '-' for row in rows)}


def print_result(result: Row, console: Console) -> None:
    """Print the table of a JSON file's content."""
    rows = result['contenders']
    console.print(escape(headline(result)), soft_wrap=True)
    columns = _columns(rows)
    table = views.table('engine', *map(str.strip, columns))
    for row in rows:
        table.add_row(escape(row['name']), *(cell(row) for cell in columns.values()))
    console.print(table)
    for row in result['refused']:
        console.print(escape(f'left out: {row["engine"]} {row["label"]}: {row["reason"]}'), soft_wrap=True)
    for note in result['notes']:
        console.print(f'note: {escape(note)}', soft_wrap=True)


def write_chart(result: Row, target: str | Path) -> None:
    """Draw the content of a JSON file into a PNG: a bar per contender on the main input."""
    rows = [row for row in result['contenders'] if row['input'] == result['main_input']]
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
