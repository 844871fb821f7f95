"""The verdict on the console: lines about files and samples, tables, the claim, and what to do next."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mmdeploy_ext.core.user_modules import not_run_text
from mmdeploy_ext.proving.levels.drive_run import error_ratio
from mmdeploy_ext.proving.results import first_lines
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.proving.views.commands import next_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from mmdeploy_ext.proving.results import Case, Check, DetectionRow, SequenceRow
    from mmdeploy_ext.proving.untraced import Untraced
    from mmdeploy_ext.proving.verdict import Verdict

MAX_ROWS = 20
"""A case with more rows shows only the worst of each kind, see `_representatives`; the JSON file has all."""
MAX_LINES = 60
"""If the table would have more lines, all cases show only the worst rows."""
MAX_REASONS = 8
"""Number of reasons of one kind (for a failure, or why inputs decide) that the console lists."""
MAX_CLASSES = 6
"""Number of classes, the user's and ours each, that the console names; the JSON and the page have all."""
TENSOR_TITLES = ('shape', 'max abs', 'max rel', 'cosine', 'tolerance', '')
"""Titles of the columns of a tensor; that of scores' differences, the last one, stays empty."""


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print a verdict on a console of 120 columns or more."""
    if verdict.libraries_not_run:
        console.print(f'[red]{escape(not_run_text(verdict.libraries_not_run))}[/red]', soft_wrap=True)
    if verdict.graphs:
        colour = 'red' if any(not graph.passed for graph in verdict.graphs) else 'green'
        console.print(f'[{colour}]graph:[/{colour}] {escape(verdict.graph_text)}', soft_wrap=True)
    for line in code_lines(verdict):
        console.print(escape(line), soft_wrap=True)
    print_structure(verdict.structure, console)
    if verdict.preprocessing is not None:
        mark = '' if verdict.preprocessing.passed else '[red]FAILED[/red] '
        console.print(f'{mark}preprocessing: {escape(verdict.preprocessing.text)}', soft_wrap=True)
    if any(case.tensors or case.detections for case in verdict.cases):
        console.print(verdict_table(verdict))
    if verdict.sequence:
        console.print(sequence_table(verdict.sequence))
    for row in verdict.metrics:
        values = f'PyTorch {row.reference:.4f}, ONNX {row.candidate:.4f}, {row.difference_text}'
        console.print(f'{_mark(row.passed)} {escape(row.name)}: {values}')
    untraced = untraced_texts(verdict.untraced)
    for title, lines in dict(untraced=untraced, unreached=verdict.unreached, note=verdict.notes).items():
        for line in lines:
            console.print(f'{title}: {escape(line)}', soft_wrap=True)
    colour = 'bold green' if verdict.passed else 'bold red'
    console.print(f'[{colour}]{escape(last_line(verdict))}[/{colour}]', soft_wrap=True)
    console.print(f'next: {escape(next_command(verdict))}', soft_wrap=True)


def print_structure(checks: Sequence[Check], console: Console) -> None:
    """Print the checks of a file's structure that failed, or how many passed."""
    failed = [check for check in checks if not check.passed]
    for check in failed:
        text = f'structure: {escape(check.name)}: {escape(check.detail)}'
        console.print(f'[red]FAILED[/red] {text}', soft_wrap=True)
    if checks and not failed:
        console.print(f'structure: {len(checks)} checks passed')


def code_lines(verdict: Verdict) -> list[str]:
    """Return lines about classes of the model that no installed library has."""
    users = [entry for entry in verdict.model_classes if not entry.ours]
    ours = [entry.name for entry in verdict.model_classes if entry.ours]
    lines = [f'class: {entry.name} ({entry.place})' for entry in users[:MAX_CLASSES]]
    if len(users) > MAX_CLASSES:
        count = len(users) - MAX_CLASSES
        lines.append(f'class: {count} more that no installed library has; the JSON file has them all')
    if ours:
        suffix = f' and {len(ours) - MAX_CLASSES} more' if len(ours) > MAX_CLASSES else ''
        lines.append(f'our implementation: {", ".join(ours[:MAX_CLASSES])}{suffix}')
    return lines


def untraced_texts(untraced: Sequence[Untraced]) -> list[str]:
    """Return the texts about what a graph cannot show, at most `MAX_REASONS` and a count."""
    texts = [entry.text for entry in untraced[:MAX_REASONS]]
    if len(untraced) > MAX_REASONS:
        texts.append(f'{len(untraced) - MAX_REASONS} more; the JSON file has them all')
    return texts


def verdict_table(verdict: Verdict) -> Table:
    """Return the table: the lines of every case, each level with its own headings.

    A tensor has one line per group of columns that is compared by itself (`TensorRow`), an image one line.
    Of a case with more than `MAX_ROWS` lines, and of all cases if they have more than `MAX_LINES` together,
    only the worst line of each kind is shown.
    """
    cases = verdict.cases
    tensors = any(case.tensors for case in cases)
    boxes = [row for case in cases for row in case.detections]
    kinds = [kind for kind, used in (('tensor', tensors), ('image', boxes)) if used]
    table = _table(f'case\n  {" or ".join(kinds)}')
    task = task_module(verdict.subject['task'] if boxes else 'bbox2d')
    detection_titles = task.RESULTS, 'matched', 'missing', 'extra', task.PLACE, 'worst Δscore'
    for titles in zip(TENSOR_TITLES, detection_titles, strict=True):
        lines = [title for title, used in zip(titles, (tensors, boxes), strict=True) if used]
        if any(lines):
            table.add_column('\n'.join(lines), justify='right', overflow='fold')
    table.add_column('verdict')
    brief = sum(len(case.tensors) + len(case.detections) for case in cases) > MAX_LINES
    for case in cases:
        table.add_row(f'[bold]{escape(case.name)}[/bold] [dim]{escape(case.input_shape)}[/dim]')
        lines, count = _case_lines(case, brief), len(table.columns) - 1
        for index, line in enumerate(lines, 1):
            cells = [*line[:count], *[''] * (count - len(line))]
            table.add_row(*cells, line[-1], end_section=index == len(lines))
    return table


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow='fold', max_width=44)
    return table


def sequence_table(rows: Sequence[SequenceRow]) -> Table:
    """Return one line per mode, and below it the worst frame of the outputs and of the memory."""
    table = _table('sequence\n  worst of all frames')
    titles = ('frames\n', 'resets\n', 'matched\nmax abs', 'worst Δm\nof tolerance', 'worst Δscore\nframe')
    for title in (*titles, 'ties\n'):
        table.add_column(title, justify='right', overflow='fold')
    table.add_column('verdict')
    for row in rows:
        rate = '' if row.match_rate is None else f' {100 * row.match_rate:.2f} %'
        counts = str(row.frames), str(row.resets), f'{row.matched}/{row.reference}{rate}'
        worst = figure(row.worst_distance), figure(row.worst_score)
        ties = '0'
        if row.ties:
            suffix = f', memory taken over in {row.taken_over}' if row.taken_over else ''
            ties = f'{row.ties} in {row.tied_frames} frames{suffix}'
        table.add_row(f'[bold]{escape(row.title)}[/bold]', *counts, *worst, ties, _mark(row.passed))
        for title, group in (('outputs', False), ('memory', True)):
            tensors = [tensor for tensor in row.tensors if tensor.tensor.startswith('memory ') == group]
            if tensors:
                worst = max(tensors, key=error_ratio)
                name = f'  {title}: {escape(worst.tensor.removeprefix("memory "))}'
                share = error_ratio(worst)
                text = '-' if share == float('inf') else f'{100 * share:.3g} %'
                table.add_row(name, '', '', figure(worst.max_abs), text, escape(worst.at), '', '')
        table.add_section()
    return table


def _case_lines(case: Case, brief: bool) -> list[tuple[str, ...]]:
    """Return the cells of a case's lines; the last cell is the mark."""
    brief = brief or len(case.tensors) + len(case.detections) > MAX_ROWS
    lines = []
    for row, count in _representatives(
        case.tensors, lambda row: math.inf if row.max_rel is None else row.max_rel, brief
    ):
        figures = figure(row.max_abs), figure(row.max_rel), cosine_text(row.cosine), figure(row.tolerance)
        lines.append((_name(row.tensor, count), row.shape, *figures, '', _mark(row.passed)))
    title = "{}, by the file's tensors"
    named = [dataclasses.replace(row, image=title.format(row.image)) for row in case.substituted]
    for row, count in (
        *_representatives(case.detections, _detection_badness, brief),
        *_representatives(named, _detection_badness, brief),
    ):
        matched = f'{row.matched} +{row.outside} off' if row.outside else str(row.matched)
        counts = str(row.reference), matched, str(row.missing), str(row.extra)
        place = f'{row.worst_iou:.6f}' if row.worst_distance is None else figure(row.worst_distance)
        cells = _name(row.image, count), *counts, place, figure(row.worst_score)
        lines.append((*cells, _mark(row.passed)))
    return lines


def last_line(verdict: Verdict) -> str:
    """Return the claim of a verdict with its figures, `PROVEN ...`, or with the reasons why it failed."""
    file = verdict.subject.get('file', 'the ONNX model')
    if verdict.passed:
        tensors = sum(len(case.tensors) for case in verdict.cases)
        matched = sum(row.matched for case in verdict.cases for row in case.detections)
        figures = []
        if tensors:
            figures.append(f'{tensors} tensor comparisons')
        if matched:
            figures.append(f'{matched} matched detections')
        inputs = f'{len(verdict.cases)} inputs'
        if verdict.sequence:
            free = verdict.sequence[-1]
            inputs = f'{free.frames} frames, {" and ".join(row.title for row in verdict.sequence)}'
        claim = f'{file} {"equals" if verdict.proven else "is near"} the PyTorch model'
        return f'{verdict.title} {claim}: {inputs}, {", ".join(figures)}{_worst_cosine(verdict)}'
    reasons = first_lines(verdict.failures, MAX_REASONS)
    return f'{verdict.title}: {reasons}{_worst_cosine(verdict)}'


def _worst_cosine(verdict: Verdict) -> str:
    """Return the worst cosine of half precision; '' for float32, whose bars are tolerances."""
    cosines = [row.cosine for case in verdict.cases for row in case.tensors if row.cosine is not None]
    if verdict.precision == 'fp32' or not cosines:
        return ''
    return f'; worst cosine {cosine_text(min(cosines))}'


def _representatives(
    rows: Sequence[Any], badness: Callable[[Any], Any], brief: bool
) -> list[tuple[Any, int]]:
    """Return (row, number of rows that it stands for): each row, or if `brief` only the worst of each kind.

    Rows whose names differ only in a number (`cls_score_0`, `cls_score_1`) are of one kind, if both pass or
    both fail. `badness(row)` is the largest for the worst row.
    """
    if not brief:
        return [(row, 1) for row in rows]
    kinds: dict[tuple[str, bool], list[Any]] = {}
    for row in rows:
        kinds.setdefault((re.sub(r'\d+', '*', getattr(row, 'tensor', 'images')), row.passed), []).append(row)
    return [(max(kind, key=badness), len(kind)) for kind in kinds.values()]


def _detection_badness(row: DetectionRow) -> tuple[float, ...]:
    lonely = row.missing + row.extra + row.outside
    return lonely, 1 - row.worst_iou, row.worst_distance or 0.0, row.worst_score


def _name(name: str, count: int) -> str:
    return f'  {escape(name)}' + (f' [dim](worst of {count})[/dim]' if count > 1 else '')


def _mark(passed: bool) -> str:
    return '[green]ok[/green]' if passed else '[bold red]FAILED[/bold red]'


def figure(value: float | None) -> str:
    """Return a figure of a table as text, '1.23e-06'; '0' for 0, '-' for None."""
    if value is None:
        return '-'
    return '0' if value == 0 else f'{value:.2e}'


def cosine_text(value: float | None) -> str:
    """Return a cosine with seven decimals, at most 1; '-' for None."""
    return '-' if value is None else f'{min(value, 1.0):.7f}'
