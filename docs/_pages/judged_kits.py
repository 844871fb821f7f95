"""Writes the table of kits that were judged on this machine: python docs/_pages/judged_kits.py FOLDER PAGE.

FOLDER is what `tools/analysis_tools/judge_engines.sh` writes: per
model a folder with `kit`, and for each precision a verdict,
`fp32.json`, or what `mm2onnx judge` printed in place of one, `fp32.log`. The table goes between the marks
`<!-- judged -->` of PAGE.
"""

import json
import sys
from pathlib import Path

PRECISIONS = ('fp32', 'fp16')
HEAD = ['graph', 'precision', 'inputs', 'frames', 'verdict', 'first failure', 'run by']


def row(model: Path, name: str, precision: str) -> list[str]:
    """Return the cells of a model, the folder of that name, in a precision."""
    verdict, log = model / f'{precision}.json', model / f'{precision}.log'
    if not verdict.is_file():
        lines = log.read_text(encoding='utf-8').strip().splitlines() if log.is_file() else []
        return [name, precision, '', '', 'did not run', (lines or [''])[-1], '']
    content = json.loads(verdict.read_text(encoding='utf-8'))
    failures, claim = content['failures'], content['verdict'].partition(' ON ')[0].partition(' (')[0]
    counts = str(content['inputs']), str(content['frames'] or '')
    return [name, precision, *counts, claim, failures[0] if failures else '', content['ran']]


def table(folder: Path) -> str:
    """Return the table of all models below a folder, in Markdown."""
    models = sorted(path.parent for path in folder.rglob('kit') if path.is_dir())
    rows = [
        row(model, model.relative_to(folder).as_posix(), precision)
        for model in models
        for precision in PRECISIONS
    ]
    lines = [HEAD, ['---'] * len(HEAD), *rows]
    return '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines) + '\n'


def insert_table(text: str, table: str) -> str:
    """Return the page `text` with the table between its marks; an empty page becomes both."""
    start, end = '<!-- judged -->\n', '<!-- /judged -->'
    if not text.strip():
        return f'{start}{table}{end}\n'
    before, start_mark, rest = text.partition(start)
    _, end_mark, after = rest.partition(end)
    if not (start_mark and end_mark):
        raise SystemExit(f'the page has no lines {start.strip()} and {end}: add them')
    return f'{before}{start}{table}{end}{after}'


def main(folder: str, page: str) -> None:
    """Write the table of a folder into a page."""
    path = Path(page)
    before = path.read_text(encoding='utf-8') if path.is_file() else ''
    text = insert_table(before, table(Path(folder)))
    path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
