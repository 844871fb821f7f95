"""Tables and charts of a benchmark, made of the content of its JSON file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from mmdeploy_ext.quantize import views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

    Row = Mapping[str, Any]
    """JSON object of a benchmark."""
    Columns = Mapping[str, Callable[[Row], str]]
    """Title of a column -> function that returns the text of its cell in a row."""

NETWORK_COLOUR, POSTPROCESS_COLOUR = '#3b6ea5', '#e0973a'
"""Colours of the two parts of a bar: time of the network, and of the post-processing; of lines see below."""
LINE_COLOURS = ('#1b2330', NETWORK_COLOUR, NETWORK_COLOUR, POSTPROCESS_COLOUR, POSTPROCESS_COLOUR)
"""Colours of lines over voxels in the order of the contenders, begun again at the end.

By default these are spconv, then two numbers of threads for each engine.
"""
SPCONV = 'spconv, 1 thread'
"""Name of the contender 'torch' in tables and charts of sparse backbones."""


def headline(result: Row) -> str:
    """Return config, input, threads, processes, rounds and machine (CPU and its cores) in one line.

    Of a sparse backbone these are config, grid and machine. `result` is the content of the JSON file.
    """
    machine = f'{result["machine"]["cpu"]}, {result["machine"]["cores"]} cores'
    if 'grid' in result:
        return f'{result["config"]}, grid {result["grid"]}; {machine}'
    processes = '1 process' if result['processes'] == 1 else f'{result["processes"]} processes'
    return (
        f'{result["config"]}, input {result["input_shape"]}, {result["threads"]} threads, {processes}, '
        f'{result["rounds"]} interleaved rounds; {machine}'
    )


def _table(rows: Sequence[Row], columns: Columns, title: str | None = None) -> Table:
    """Return a table with a column per title; spaces around titles only make them unique."""
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


TIMES: Columns = {
    'engine': lambda row: escape(row['name']),
    'median ms': lambda row: f'[bold]{_median(row["total_ms"])}[/bold]',
    'quartiles': lambda row: _quartiles(row['total_ms']),
}
"""First columns of both tables of contenders: name and times."""
PEAK: Columns = {'peak MB': lambda row: f'{row["memory"]["peak_mb"]:.0f}' if row['memory'] else '-'}
"""Column of both tables of contenders: memory, '-' if it was not measured."""
COLUMNS: Columns = {
    **TIMES,
    'MAD': lambda row: f'{row["total_ms"]["mad"]:.1f}',
    'vs PyTorch': _ratio,
    'quartiles ': lambda row: _quartiles(row['ratio_to_torch'], 3),
    'network': lambda row: _median(row['network_ms']),
    'post-process': lambda row: _median(row['postprocess_ms']),
    'images/s': lambda row: f'{row["images_per_s"]:.2f}',
    'found': lambda row: f'{row["detections_per_image"]:g}',
    **PEAK,
}
"""Columns of the table of contenders on pictures or frames."""
SPARSE_COLUMNS: Columns = {
    **TIMES,
    'engine': lambda row: SPCONV if row['name'] == 'torch' else escape(row['name']),
    'vs spconv': _ratio,
    'rulebook': lambda row: _median(row['parts_ms']['rulebook']),
    'network': lambda row: _median(row['parts_ms']['network']),
    'of GEMM roofline': lambda row: (
        '-' if row['of_roofline'] is None else f'{row["of_roofline"]:.1f}x of {row["roofline_ms"]:.1f} ms'
    ),
    **PEAK,
}
"""Columns of the table of contenders on a set of voxels."""
PROFILE_COLUMNS: Columns = {
    'operator': lambda row: escape(row['name']),
    'calls': lambda row: f'{row["calls"]:g}',
    'ms per run': lambda row: f'{row["ms"]:.2f}',
    'share': lambda row: f'{row["share"]:.1%}',
}
"""Columns of the table of operators."""


def _part_columns(rows: Sequence[Row]) -> Columns:
    """Return columns of the parts of a frame, in ms."""
    parts = dict.fromkeys(part for row in rows for part in row['parts_ms'])

    def cell(part: str) -> Callable[[Row], str]:
        return lambda row: f'{row["parts_ms"][part]:.1f}' if part in row['parts_ms'] else '-'

    return {
        'median ms per frame': TIMES['engine'],
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
    show(*(_set_parts(result) if 'sets' in result else _contender_parts(result)))
    if result.get('bars'):
        show(f'bars, set for {result["bars_of"]}:')
    for bar in result.get('bars', ()):
        mark = '[green]ok[/green]' if bar['passed'] else '[bold red]MISSED[/bold red]'
        console.print(f'  {mark} {escape(bar["name"])}: {bar["value"]:g} (at most {bar["bar"]:g})')
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


def _contender_parts(result: Row) -> Iterator[str | Table]:
    """Yield tables and lines of a benchmark of pictures or frames."""
    rows = result['contenders']
    yield _table(rows, COLUMNS)
    for row in result['forms']:
        cost = row['postprocess_in_graph_ms']
        yield (
            f'{escape(row["graph"])} against {escape(row["raw"])}, graphs alone: '
            f'{row["ratio"]["median"]:.3f}x '
            f'({_quartiles(row["ratio"], 3)}); its post-processing: {_median(cost, 2)} ms '
            f'({_quartiles(cost, 2)})'
        )
    if any('parts_ms' in row for row in rows):
        yield _table(rows, _part_columns(rows))
    if ratio := result.get('deploy_to_fork'):
        yield f'deploy contract against fork contract: {ratio["median"]:.3f}x ({_quartiles(ratio, 3)})'


def _set_parts(result: Row) -> Iterator[str | Table]:
    """Yield tables and lines of a benchmark of sets of voxels."""
    for entry in result['sets']:
        title = '{name}: {voxels} voxels, {pairs} pairs, {gflop:.2f} GFLOP'.format_map(entry)
        title += ''.join(f', voxelise ({name}) {ms:.1f} ms' for name, ms in entry['voxelise_ms'].items())
        yield _table(entry['contenders'], SPARSE_COLUMNS, title)
    if result['growth'] and result['work_growth'] is not None:
        exponents = ', '.join(
            f'{name} {exponent:.2f}' for name, exponent in result['growth'].items() if exponent is not None
        )
        yield (
            f'growth, exponent of the fastest time in voxels over the synthetic sets: {escape(exponents)}; '
            f'of the multiplications {result["work_growth"]:.2f}'
        )
    if racing := result['racing']:
        yield (
            f'spconv with {racing["threads"]} threads, [bold]WRONG[/bold] (its kernels race): '
            f'{racing["median_ms"]:.0f} ms at {racing["voxels"]} voxels, off by up to '
            f'{racing["worst_rel"]:.1e} of the largest value in {racing["runs"]} runs'
        )
    exports = ', '.join(f'{target} {seconds:.2f} s' for target, seconds in result['export_s'].items())
    yield f'export, tracing included: {exports}'


def write_chart(result: Row, target: str | Path) -> None:
    """Draw `result`, the content of the JSON file of a benchmark, into the PNG `target`.

    The chart has a bar for each contender; of a sparse backbone it has lines of times over numbers of voxels.
    """
    height = 6 if 'sets' in result else 1.9 + 0.62 * len(result['contenders'])
    draw = _draw_lines if 'sets' in result else _draw_bars
    with views.png(target, 9.5, height, font=11, dpi=120) as figure:
        draw(result, figure.add_subplot())


def _draw_bars(result: Row, axes: Axes) -> None:
    """Draw medians as bars, with quartiles and the ratio to PyTorch."""
    rows = result['contenders']
    model = f'{result["config"]}, input {result["input_shape"]}'
    machine = f'{result["threads"]} threads of {result["machine"]["cpu"]}, {result["rounds"]} rounds'
    axes.set_title(f'{model}\n{machine}', loc='left', fontsize=11)
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


def _draw_lines(result: Row, axes: Axes) -> None:
    """Draw time over voxels, both logarithmic; real sweeps are crosses."""
    sets = result['sets']
    for index, row in enumerate(sets[0]['contenders']):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        for real in (False, True):
            entries = [entry for entry in sets if entry['real'] == real]
            times = [entry['contenders'][index]['total_ms']['median'] for entry in entries]
            label = None if real else SPARSE_COLUMNS['engine'](row)
            line_format = 'o--' if row['threads'] == 1 and row['engine'] != 'torch' else 'o-'
            if real:
                line_format = 'x'
            axes.plot([entry['voxels'] for entry in entries], times, line_format, color=colour, label=label)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('voxels (crosses: real sweeps)')
    axes.set_ylabel('ms, rulebook and network: median')
    axes.grid(True, which='both', alpha=0.25)
    axes.set_xticks([entry['voxels'] for entry in sets if not entry['real']])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter('{x:,.0f}')
    axes.xaxis.set_minor_formatter('')
    axes.yaxis.set_minor_formatter('{x:,.0f}')
    axes.set_title(f'{result["config"]}\n{result["machine"]["cpu"]}', loc='left', fontsize=11)
    axes.legend(frameon=False)
