"""The table of docs/exporters.md: read from the page, and written with new rows in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from docs._pages.exporters.rows import EXPORTERS, MODELS, Row
from mmdeploy_ext.core.errors import UsageError, one_line
from mmdeploy_ext.core.files import atomic_path, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, END = '<!-- table: tools/analysis_tools/exporters.py -->', '<!-- end of the table -->'
HEADER = (
    '| model | form | exporter | opset | exports | proven | nodes | export s | latency ms | ratio |',
    '|---|---|---|---:|---|---|---:|---:|---:|---:|',
)
LONGEST_REASON = 160
REASON = re.compile(r'(\d+)\. (.+)')
CELL = re.compile(r'(yes|no|NO|-)(?:(?<=no|NO) \((\d+)\))?')


@dataclasses.dataclass(frozen=True)
class Page:
    """A page with a table.

    Attributes:
        path: of the file.
        before: its text up to the table.
        rows: of the table.
        after: the text behind it.
    """

    path: str
    before: str
    rows: Sequence[Row]
    after: str

    def write(self, rows: Sequence[Row]) -> None:
        """Put new rows in the place of those of the same model, form, exporter and opset, and add others."""
        merged = {_key(row): row for row in (*self.rows, *rows)}
        lines = table(sorted(merged.values(), key=_order))
        text = '\n'.join([f'{self.before}{BEGIN}', '', *lines, '', f'{END}{self.after}'])
        with atomic_path(self.path) as temporary:
            temporary.write_text(text, encoding='utf-8')


def read(path: str) -> Page:
    """Return a page with its table, as it is now: others may write in it while a table is measured.

    Raises:
        UsageError: no such page, not both marks in it, or a line between them that `write` would lose: it
            is neither a row nor the reason of one, or a second row of the same export.
    """
    check_writable(path)
    page = Path(path)
    text = page.read_text(encoding='utf-8') if page.is_file() else ''
    before, begin, rest = text.partition(BEGIN)
    inner, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f'--write {path}: expected a page with the lines {BEGIN} and {END}')
    lines = [line for line in inner.splitlines() if line.strip() and line not in HEADER]
    table_lines = [line for line in lines if line.startswith('|')]
    reasons = _reasons([line for line in lines if not line.startswith('|')], path)
    unused, rows = dict(reasons), {}
    for line in table_lines:
        row = _row(line, reasons, unused, path)
        if _key(row) in rows:
            raise UsageError(f'--write {path}: {line!r} is a second row of the same export; take one out')
        rows[_key(row)] = row
    if unused:
        number, text = next(iter(unused.items()))
        raise UsageError(f'--write {path}: {number + ". " + text!r} is the reason of no row; take it out')
    return Page(path, before, list(rows.values()), after)


def _reasons(lines: Sequence[str], path: str) -> dict[str, str]:
    """Return number -> text of the lines below the table."""
    reasons: dict[str, str] = {}
    for line in lines:
        match = REASON.fullmatch(line)
        if match is None:
            raise UsageError(
                f'--write {path}: {line!r} is neither a row of the table nor a numbered reason; move it out '
                f'of the marks'
            )
        if match[1] in reasons:
            raise UsageError(f'--write {path}: {line!r} has a number that is there twice; correct it')
        reasons[match[1]] = match[2]
    return reasons


def _row(line: str, reasons: dict[str, str], unused: dict[str, str], path: str) -> Row:
    """Return a row of the table; its reason is taken out of `unused`."""
    cells = [cell.strip() for cell in line.strip().strip('|').split('|')]
    try:
        model, form, exporter, opset, exported, proven, *figures = cells
        marks = [CELL.fullmatch(cell) for cell in (exported, proven)]
        note = next((mark[2] for mark in marks if mark[2]), None)
        unused.pop(note, None)
        nodes, *times = (None if text == '-' else float(text) for text in figures)
        return Row(
            model, form, exporter, int(opset),
            reason=reasons[note].split(': ', 1)[1] if note else '',
            exported=marks[0][1] == 'yes', proven=marks[1][1] == 'yes',
            nodes=None if nodes is None else int(nodes),
            **dict(zip(('export_s', 'latency_ms', 'ratio'), times, strict=True)),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UsageError(
            f'--write {path}: {line!r} is no row of the table; correct it or take it out'
        ) from error


def _key(row: Row) -> tuple[str, str, str, int]:
    return row.model, row.form, row.exporter, row.opset


def _order(row: Row) -> tuple[int, int, int, int]:
    titles = [model.title for model in MODELS.values()]
    forms = [form for model in MODELS.values() for form in model.forms if model.title == row.model]
    places = [
        known_values.index(value) if value in known_values else len(known_values)
        for known_values, value in ((titles, row.model), (forms, row.form), (EXPORTERS, row.exporter))
    ]
    return places[0], places[1], row.opset, places[2]


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table in Markdown, and below it a line per reason."""
    lines, reasons = list(HEADER), []
    for row in rows:
        note = ''
        if row.reason:
            reasons.append(f'{len(reasons) + 1}. {row.model} {row.form}, {row.exporter}: {short(row.reason)}')
            note = f' ({len(reasons)})'
        cells = (
            row.model,
            row.form,
            row.exporter,
            str(row.opset),
            'yes' if row.exported else f'no{note}',
            '-' if not row.exported else 'yes' if row.proven else f'NO{note}',
            figure(row.nodes, 0),
            figure(row.export_s, 1),
            figure(row.latency_ms, 2),
            figure(row.ratio, 2),
        )
        lines.append(f'| {" | ".join(cells)} |')
    return [*lines, *(['', *reasons] if reasons else [])]


def figure(value: float | None, digits: int) -> str:
    """Return a number for a cell."""
    return '-' if value is None else f'{value:.{digits}f}'


def short(reason: str) -> str:
    """Return a reason in one line."""
    line = one_line(reason)
    return line if len(line) <= LONGEST_REASON else f'{line[: LONGEST_REASON - 3]}...'
