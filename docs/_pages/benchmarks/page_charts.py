"""Charts of the benchmark of the whole product, as PNG files: ratios on the CPU and the GPU, and memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from docs._pages.benchmarks.whole_results import place_title
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.engines.registry import BASELINE, ENGINES, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

COLOURS = ('#1b2330', '#3b6ea5', '#e0973a', '#5b8c5a', '#a5527a', '#7a7a7a')
COLUMNS = 2
PALETTE = 64
"""Colours of the file: a third of its bytes, and no difference to see."""
WIDTH, BAR, HEAD = 11.0, 0.23, 0.62
"""Inches: of the figure, of a bar, of a panel's title and axis."""


def write_all(results: Mapping[str, Any], folder: Path, page: str) -> list[dict[str, str]]:
    """Write the charts of a page that there are figures for; returns file (beside `folder`) and caption."""
    charts = {
        f'{page}-cpu.png': (panels(results, 'cpu'), 'Time against eager PyTorch, on the CPU'),
        f'{page}-gpu.png': (panels(results, 'gpu'), 'Time against eager PyTorch, on the GPU'),
        f'{page}-memory.png': (memory_panels(results), 'Peak memory against eager PyTorch'),
    }
    files = []
    for name, (bars, caption) in charts.items():
        if bars:
            draw(bars, caption, folder / name)
            files.append(dict(file=f'{folder.name}/{name}', caption=caption))
    return files


def panels(results: Mapping[str, Any], device: str) -> dict[str, list[dict[str, Any]]]:
    """Return title -> bars (engine, label, precision, value, low, high) of the run with the most threads."""
    bars_by_title = {}
    for entry in results['cases'].values():
        runs = [
            run
            for run in entry['runs']
            if not run.get('reason') and (run['device'] == 'cpu') == (device == 'cpu')
        ]
        rows = runs[-1]['rows'] if runs else ()
        bars = [_bar(row) for row in rows if row['ratio'] is not None and row['label']]
        if bars:
            bars_by_title[f'{entry["title"]} ({place_title(runs[-1])})'] = bars
    return bars_by_title


def _bar(row: Mapping[str, Any]) -> dict[str, Any]:
    ratio = row['ratio']
    return dict(
        engine=row['engine'], label=row['label'], precision=row['precision'],
        value=ratio['median'], low=ratio['q1'], high=ratio['q3'],
    )  # fmt: skip


def memory_panels(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return title -> bars of peak memory."""
    bars_by_title = {}
    for entry in results['cases'].values():
        precisions = {file['label']: file['precision'] for file in entry['files']}
        bars = []
        for key, value in entry['memory'].items():
            engine, _, label = key.partition(' ')
            if label:
                bars.append(dict(engine=engine, label=label, precision=precisions.get(label, 'fp32'),
                                 value=value, low=value, high=value))  # fmt: skip
        if bars:
            bars_by_title[entry['title']] = bars
    return bars_by_title


def draw(bars_by_title: Mapping[str, Sequence[Mapping[str, Any]]], caption: str, target: Path) -> None:
    """Draw one panel per title into a PNG file; a line marks PyTorch."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from PIL import Image

    names = list(bars_by_title)
    rows = [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
    heights = [HEAD + BAR * max(len(bars_by_title[name]) for name in row) for row in rows]
    largest = max(bar['high'] for bars in bars_by_title.values() for bar in bars)
    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout='constrained')
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
        for index, name in enumerate(names):
            axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
            _panel(axes, name, bars_by_title[name], max(1.1, largest * 1.18))
        engines = dict.fromkeys(bar['engine'] for bars in bars_by_title.values() for bar in bars)
        patches = [Patch(color=colour_of(engine), label=title_of(engine)) for engine in engines]
        patches.append(Patch(facecolor='white', edgecolor='#555555', hatch='////', label='INT8 or half'))
        figure.suptitle(f'{caption}: 1 is PyTorch, shorter is better', x=0.01, ha='left', fontsize=11)
        figure.legend(handles=patches, loc='outside lower left', ncols=len(patches), frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format='png', dpi=100, metadata={'Software': None})
        with atomic_path(target) as temporary:
            Image.open(drawn).convert('RGB').quantize(PALETTE).save(temporary, format='png', optimize=True)


def colour_of(engine: str) -> str:
    """Return the colour of an engine, the same in all charts."""
    order = list(ENGINES)
    return COLOURS[(order.index(engine) if engine in order else len(order)) % len(COLOURS)]


def _panel(axes: Axes, title: str, bars: Sequence[Mapping[str, Any]], right: float) -> None:
    places = range(len(bars))
    for place, bar in zip(places, bars, strict=True):
        hatch = None if bar['precision'] == 'fp32' else '////'
        axes.barh(
            place, bar['value'], color=colour_of(bar['engine']), hatch=hatch, edgecolor='white', height=0.8
        )
        axes.annotate(f'{bar["value"]:.2f}', (bar['high'], place), xytext=(4, 0),
                      textcoords='offset points', va='center', fontsize=8)  # fmt: skip
    whiskers = [[bar['value'] - bar['low'] for bar in bars], [bar['high'] - bar['value'] for bar in bars]]
    if any(map(any, whiskers)):
        axes.errorbar([bar['value'] for bar in bars], places, xerr=whiskers, fmt='none', ecolor='#222222',
                      capsize=2, linewidth=1)  # fmt: skip
    axes.axvline(1.0, color=colour_of(BASELINE), linewidth=1, linestyle='--')
    axes.set_yticks(places, [bar['label'] for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, right)
    axes.set_title(title, loc='left', fontsize=9.5)
    axes.spines[['top', 'right']].set_visible(False)
