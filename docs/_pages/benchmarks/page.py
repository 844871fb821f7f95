"""The page about the benchmark of the whole product, from its results file. It measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._pages.benchmarks import page_charts
from docs._pages.benchmarks.whole import row_key
from docs._pages.benchmarks.whole_results import is_disturbed, place_title, reasons
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.core.pages import template
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, ENGINES, title_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TEMPLATE = 'page.md.j2'
PRECISIONS = {'fp32': '', 'fp16': ' fp16', 'bf16': ' bf16', 'int8': ' INT8'}


def write(results: Mapping[str, Any], target: str) -> None:
    """Write the page, and its charts to the folder `images` beside it."""
    page = Path(target)
    charts = page_charts.write_all(results, page.parent / 'images', page.stem)
    with atomic_path(page) as temporary:
        temporary.write_text(render(results, charts), encoding='utf-8')


def render(results: Mapping[str, Any], charts: Sequence[Mapping[str, str]] = ()) -> str:
    """Return the page.

    Args:
        results: of `whole.run_cases`.
        charts: file (from the page) and caption of each.
    """
    return template(__file__, TEMPLATE, keep_trailing_newline=True).render(
        machine=results['machine'],
        versions=', '.join(f'{name} {version}' for name, version in results['machine']['versions'].items()),
        commands=list(dict.fromkeys(results['commands'])),
        overview=overview(results['cases']),
        charts=charts,
        sections=[section(entry) for entry in results['cases'].values()],
        weights={entry['weights'] for entry in results['cases'].values()},
        compiled=any(
            row['engine'] == COMPILED
            for entry in results['cases'].values()
            for run in entry['runs']
            for row in run.get('rows', ())
        ),
    )


# ---- the first table


def main_runs(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the run on the CPU with the most threads, and that on the GPU, as far as they are there."""
    measured = [run for run in entry['runs'] if not run.get('reason')]
    on_cpu = [run for run in measured if run['device'] == 'cpu']
    return [*on_cpu[-1:], *(run for run in measured if run['device'] != 'cpu')]


def best_rows(entry: Mapping[str, Any]) -> dict[tuple[bool, str, str], Mapping[str, Any]]:
    """Return (on the GPU, engine, precision) -> its fastest row of the main runs."""
    best: dict[tuple[bool, str, str], Mapping[str, Any]] = {}
    for run in main_runs(entry):
        for row in run['rows']:
            key = run['device'] != 'cpu', row['engine'], row['precision']
            if row['engine'] == BASELINE or row['ratio'] is None:
                continue
            if key not in best or row['ratio']['median'] < best[key]['ratio']['median']:
                best[key] = row
    return best


def overview(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table: a row per case, a column per engine and precision that was measured."""
    best_by_title = {entry['title']: best_rows(entry) for entry in cases.values()}
    columns = sorted({key for best in best_by_title.values() for key in best}, key=_column_order)
    if not columns:
        return []
    heads = ['model', 'threads']
    heads += [f'{title_of(engine)}{PRECISIONS[kind]}{" (GPU)" * gpu}' for gpu, engine, kind in columns]
    lines = [_line(heads), _line(['---', *['---:'] * (len(heads) - 1)])]
    for entry, best in zip(cases.values(), best_by_title.values(), strict=True):
        if best:
            threads = next((str(run['threads']) for run in main_runs(entry)), '-')
            lines.append(_line([entry['title'], threads, *(_best_cell(best.get(key)) for key in columns)]))
    return lines


def _column_order(key: tuple[bool, str, str]) -> tuple[bool, int, int]:
    gpu, engine, precision = key
    order = list(ENGINES)
    place = order.index(engine) if engine in order else len(order)
    return gpu, place, list(PRECISIONS).index(precision)


def _best_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return '-'
    return f'**{row["ratio"]["median"]:.3f}** {row["label"].split(",")[0]}'


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


# ---- one case


def section(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of a case."""
    runs = [run for run in entry['runs'] if not run.get('reason')]
    return dict(
        entry,
        table=case_table(entry, runs),
        rounds=', '.join(_rounds(run) for run in runs),
        notes=list(dict.fromkeys(note for run in runs for note in run['notes'])),
        reasons=reasons(entry),
        forms=[
            f'{title_of(engine)} {ratio:.3f} on {place_title(run)}'
            for run in runs
            for engine, ratio in run.get('forms', {}).items()
        ],
        commands=[
            *entry.get('before', ()),
            *(file['command'] for file in entry['files']),
            *(run['command'] for run in entry['runs'] if 'command' in run),
        ],
    )


def _rounds(run: Mapping[str, Any]) -> str:
    load = run['other_load']
    text = f'{run["rounds"]} rounds on {place_title(run)}'
    if load is None:
        return text
    return f'{text} (others used {load:.1%} of the cores{": doubtful" * is_disturbed(run)})'


def case_table(entry: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a case's table: a row per engine and file, columns per place."""
    rows = {row_key(row): row for run in runs for row in run['rows']}
    if not rows:
        return []
    sizes = {file['label']: file['size_ratio'] for file in entry['files'] if file.get('size_ratio')}
    heads = ['engine', 'file']
    heads += [head for run in runs for head in (place_title(run), 'quartiles')]
    are_found = any(row['found'] is not None for row in rows.values())
    columns = {'peak memory': entry['memory'], 'file size': sizes, 'found': are_found}
    heads += [head for head, is_shown in columns.items() if is_shown]
    lines = [_line(heads), _line(['---', '---', *['---:'] * (len(heads) - 2)])]
    for key, row in rows.items():
        cells = [title_of(row['engine']), row['label'] or '-']
        cells += [cell for run in runs for cell in _ratio_cells(run, key)]
        if entry['memory']:
            cells.append(_figure(entry['memory'].get(key), 2))
        if sizes:
            cells.append(_figure(sizes.get(row['label']), 3))
        if are_found:
            cells.append('-' if row['found'] is None else f'{row["found"]:g}')
        lines.append(_line(cells))
    return lines


def _ratio_cells(run: Mapping[str, Any], key: str) -> tuple[str, str]:
    row = next((row for row in run['rows'] if row_key(row) == key), None)
    if row is None or row['ratio'] is None:
        return '-', '-'
    if row['engine'] == BASELINE and not row['label']:
        return '1', ''
    ratio = row['ratio']
    return f'**{ratio["median"]:.3f}**', f'{ratio["q1"]:.3f} .. {ratio["q3"]:.3f}'


def _figure(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'
