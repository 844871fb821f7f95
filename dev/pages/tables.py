"""Markdown tables of the pages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> str:
    """Return a table with a line end; columns with a heading in `right` are aligned right."""
    rule = '|'.join('---:' if heading in right else '---' for heading in headings)
    return f'{_line(headings)}|{rule}|\n{"".join(map(_line, rows))}'


def _line(cells: Sequence[object]) -> str:
    texts = [re.sub(r'(?<!\\)\|', r'\\|', str(cell)) for cell in cells]
    return f'| {" | ".join(texts)} |\n'


def write_between(page: Path, mark: str, content: str) -> None:
    """Put text between the lines `<!-- mark -->` and `<!-- /mark -->` of a page; a new page is just these."""
    start, end = f'<!-- {mark} -->\n', f'<!-- /{mark} -->'
    before, after = '', '\n'
    if page.is_file():
        before, start_mark, rest = page.read_text(encoding='utf-8').partition(start)
        _, end_mark, after = rest.partition(end)
        if not (start_mark and end_mark):
            raise SystemExit(f'{page}: has no lines {start.strip()} and {end}: add them')
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f'{before}{start}{content}{end}{after}', encoding='utf-8')
