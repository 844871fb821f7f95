"""What a benchmark of a sparse backbone found, for people. The input is the content of the JSON file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

COLOURS = ('#1b2330', '#3b6ea5', '#3b6ea5', '#e0973a', '#e0973a')


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables; `result` is what `--json` writes."""
    machine = result['machine']
    line = f'{result["config"]}, grid {result["grid"]}; {machine["cpu"]}, {machine["cores"]} cores'
    console.print(escape(line), soft_wrap=True)
    for entry in result['sets']:
        console.print(_set_table(entry))
    if result['growth']:
        grown = ', '.join(
            f'{name} {value:.2f}' for name, value in result['growth'].items() if value is not None
        )
        console.print(
            f'growth, exponent of the fastest time in voxels over the synthetic sets: {escape(grown)}; '
            f'of the multiplications {result["work_growth"]:.2f}',
            soft_wrap=True,
        )
    racing = result['racing']
    if racing:
        console.print(
            f'spconv with {racing["threads"]} threads, [bold]WRONG[/bold] (its kernels race): '
            f'{racing["median_ms"]:.0f} ms at {racing["voxels"]} voxels, off by up to '
            f'{racing["worst_rel"]:.1e} of the largest value in {racing["runs"]} runs',
            soft_wrap=True,
        )
    exports = ', '.join(f'{target} {seconds:.2f} s' for target, seconds in result['export_s'].items())
    console.print(f'export, tracing included: {exports}')
    console.print('bars, set for BEVFusion at 1440x1440x41 on a CPU:')
    for bar in result['bars']:
        mark = '[green]ok[/green]' if bar['passed'] else '[bold red]MISSED[/bold red]'
        console.print(f'  {mark} {escape(bar["name"])}: {bar["value"]:g} (at most {bar["bar"]:g})')
    for note in result['notes']:
        console.print(f'note: {escape(note)}', soft_wrap=True)


def _set_table(entry: Mapping[str, Any]) -> Table:
    titles = ('median ms', 'quartiles', 'vs spconv', 'rulebook', 'network', 'of GEMM roofline', 'peak MB')
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    heading = f'{entry["name"]}: {entry["voxels"]} voxels, {entry["pairs"]} pairs, {entry["gflop"]:.2f} GFLOP'
    if entry['voxelise_ms']:
        heading += ''.join(f', voxelise ({name}) {ms:.1f} ms' for name, ms in entry['voxelise_ms'].items())
    table.title, table.title_justify, table.title_style = heading, 'left', 'bold'
    table.add_column('engine')
    for title in titles:
        table.add_column(title, justify='right')
    for row in entry['contenders']:
        total, ratio, memory = row['total_ms'], row['ratio_to_torch'], row.get('memory')
        name = 'spconv, 1 thread' if row['name'] == 'torch' else row['name']
        table.add_row(
            escape(name),
            f'[bold]{total["median"]:.1f}[/bold]',
            f'{total["q1"]:.1f} .. {total["q3"]:.1f}',
            '-' if ratio is None else f'[bold]{ratio["median"]:.3f}x[/bold]',
            f'{row["parts_ms"]["rulebook"]["median"]:.1f}',
            f'{row["parts_ms"]["network"]["median"]:.1f}',
            '-'
            if row['of_roofline'] is None
            else f'{row["of_roofline"]:.1f}x of {row["roofline_ms"]:.1f} ms',
            '-' if not memory else f'{memory["peak_mb"]:.0f}',
        )
    return table


def write_chart(result: Mapping[str, Any], target: str | Path) -> None:
    """Draw time over voxels, both logarithmic, into a PNG file; real sweeps are crosses."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({'font.size': 11}):
        figure = Figure(figsize=(9.5, 6), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        names = [row['name'] for row in result['sets'][0]['contenders']]
        for index, name in enumerate(names):
            colour = COLOURS[index % len(COLOURS)]
            style = '--' if name.endswith(' 1 thread') else '-'
            for real in (False, True):
                chosen = [entry for entry in result['sets'] if entry['real'] == real]
                times = [_median(entry, name) for entry in chosen]
                label = ('spconv, 1 thread' if name == 'torch' else name) if not real else None
                look = 'x' if real else f'o{style}'
                axes.plot([entry['voxels'] for entry in chosen], times, look, color=colour, label=label)
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.set_xlabel('voxels (crosses: real sweeps)')
        axes.set_ylabel('ms, rulebook and network: median')
        axes.grid(True, which='both', alpha=0.25)
        axes.set_xticks([entry['voxels'] for entry in result['sets'] if not entry['real']])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter('{x:,.0f}')
        axes.xaxis.set_minor_formatter('')
        axes.yaxis.set_minor_formatter('{x:,.0f}')
        axes.set_title(f'{result["config"]}\n{result["machine"]["cpu"]}', loc='left', fontsize=11)
        axes.legend(frameon=False)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format='png', dpi=120)


def _median(entry: Mapping[str, Any], name: str) -> float:
    row = next(row for row in entry['contenders'] if row['name'] == name)
    return row['total_ms']['median']
