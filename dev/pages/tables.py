"""Markdown tables of pages; `python -m dev.pages.tables` writes the parameters in docs/reference/api.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.api import ExportRequest, ProofRequest
from mmdeploy_ext.proving.subject import ModuleRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

API = Path(__file__).resolve().parents[2] / 'docs/reference/api.md'
REQUESTS = dict(export=ExportRequest, prove=ProofRequest, prove_module=ModuleRequest)
"""Function of the API -> its parameters."""


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


def parameters(request: type) -> str:
    """Return the table of a function's parameters, which are also options of its command."""
    rows = []
    for field in filter(lambda field: field.metadata, dataclasses.fields(request)):
        words = field.metadata['names'].split()
        spelled = ', '.join(f'`{word}`' for word in words if word.startswith('--'))
        default = '' if field.default is dataclasses.MISSING else f'`{field.default!r}`'
        text = field.metadata['text'].replace('%(default)s', str(field.default))
        rows.append((f'`{field.name}`', default, spelled, re.sub(r'([*<])', r'\\\1', text)))
    return table(('parameter', 'default', 'option', 'meaning'), rows)


if __name__ == '__main__':
    for name, request in REQUESTS.items():
        write_between(API, name, f'\n{parameters(request)}\n')
