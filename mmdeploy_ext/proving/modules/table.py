"""The verdict about a module on the console: graph, a row per input, the first difference, the claim."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.proving.results import first_lines
from mmdeploy_ext.proving.views.table import figure, print_structure, untraced_texts

if TYPE_CHECKING:
    from rich.console import Console

    from mmdeploy_ext.proving.modules.verdict import ModuleVerdict
    from mmdeploy_ext.proving.results import Case

MAX_FAILURES = 8
"""Failures that the console lists; the JSON file has them all."""


def print_module_verdict(verdict: ModuleVerdict, console: Console) -> None:
    """Print a verdict on a console of 120 columns or more."""
    if verdict.graph:
        console.print(f'graph: {escape(verdict.graph)}', soft_wrap=True)
    for line in untraced_texts(verdict.untraced):
        console.print(f'untraced: {escape(line)}', soft_wrap=True)
    print_structure(verdict.structure, console)
    if verdict.cases:
        console.print(module_table(verdict.cases))
    for line in verdict.not_compared:
        console.print(f'not compared: {escape(line)}', soft_wrap=True)
    for note in verdict.notes:
        console.print(f'note: {escape(note)}', soft_wrap=True)
    if verdict.location:
        console.print(f'first difference: {escape(location_text(verdict))}', soft_wrap=True)
    colour = 'bold green' if verdict.proven else 'bold red'
    console.print(f'[{colour}]{escape(last_line(verdict))}[/{colour}]', soft_wrap=True)


def module_table(cases: list[Case]) -> Table:
    """Return the table: per case its shapes and the output that differs most, of those that fail if some do.

    A case is one call of the module, with all its arguments; one without rows passes, see
    `Case.passed`. An output that could not be compared, or whose reference alone is zero, differs most.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style='bold')
    table.add_column('input', overflow='fold', max_width=36)
    table.add_column('shapes', overflow='fold', max_width=30)
    table.add_column('worst output', overflow='fold', max_width=24)
    for title in ('max abs', 'max rel', 'allowed'):
        table.add_column(title, justify='right')
    table.add_column('')
    for case in cases:
        if not case.tensors:
            table.add_row(escape(case.name), case.input_shape, 'all outputs are empty', '-', '-', '-', 'ok')
            continue
        worst = max(
            case.tensors,
            key=lambda row: (not row.passed, math.inf if row.max_rel is None else row.max_rel),
        )
        mark = '[green]ok[/green]' if case.passed else '[bold red]FAILED[/bold red]'
        figures = (figure(worst.max_abs), figure(worst.max_rel), figure(worst.tolerance))
        table.add_row(escape(case.name), case.input_shape, escape(worst.tensor), *figures, mark)
    return table


def location_text(verdict: ModuleVerdict) -> str:
    """Return `verdict.location`, the place at which the first difference arises, in one line; not for {}."""
    place = verdict.location
    parts = [f'node {place["node"]} ({place["op_type"]}), tensor {place["tensor"]}']
    if place['module']:
        parts.append(f'module {place["module"]}')
    if place['line']:
        parts.append(place['line'])
    if place['error'] is not None:
        parts.append(f'relative error {place["error"]:.2e}')
    return ', '.join([*parts, *place['evidence'][:1]])


def last_line(verdict: ModuleVerdict) -> str:
    """Return the claim in one line: file, module, number of cases and worst error, or the first failures."""
    file, module = verdict.subject['file'], verdict.subject['module']
    if verdict.proven:
        worst = verdict.worst_relative_error
        error = 'no value' if worst is None else f'worst relative error {worst:.1e}'
        return f'{verdict.title}: {file} equals {module}: {len(verdict.cases)} inputs, {error}'
    failures = verdict.failures or ['nothing was compared']
    return f'{verdict.title}: {file} is not {module}: {first_lines(failures, MAX_FAILURES)}'
