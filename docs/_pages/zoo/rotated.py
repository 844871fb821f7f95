"""Write the zoo of projects/mmrotate/README.md: `python -m docs._pages.zoo.rotated work_dirs/zoo_rotated`.

Records of the folder replace those of the same configs and exports in projects/mmrotate/zoo.json; without a
folder the page is written from these.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import TYPE_CHECKING

from docs._pages.zoo import page
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, read_json
from mmdeploy_ext.zoo.records import count_records, zoo_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from mmdeploy_ext.zoo.records import Record

PROJECT = page.ROOT / 'projects/mmrotate'
DATA, README = PROJECT / 'zoo.json', PROJECT / 'README.md'
BEGIN, END = '<!-- zoo -->\n', '<!-- end of the zoo -->\n'
PREFIX = 'mmrotate/'
"""Names of configs begin with the library, which the page leaves out."""


def section(content: Mapping[str, Any]) -> str:
    """Return the part of the page between `BEGIN` and `END`, given the content of the JSON file."""
    records = zoo_records(content)
    count = count_records(records)
    lines = [
        f'**{count.fixed} configs with a CPU reference are proven for one size, {count.dynamic} of them for '
        f'any size and batch, too**; {count.own_kernels} more for one size against our kernel (`*`). '
        f'The table has a row for each model, with the number of configs that are this model at test time: '
        f'these differ in what only training reads, or in where their data are.',
        '',
        '| model | configs | one size | any size | matched | worst IoU | worst score | CPU s |',
        '|---|---:|---|---|---:|---:|---:|---:|',
    ]
    groups = collections.Counter(record.same_as or record.config for record in records)
    models = [record for record in records if not record.same_as]
    lines += [row(record, groups[record.config]) for record in models]
    others = [
        f'`{short(record.config)}` as `{short(record.same_as).rpartition("/")[2]}`'
        for record in records
        if record.same_as
    ]
    lines += ['', f'Proven as another config of the table: {", ".join(others)}.']
    failures = [line.replace(PREFIX, '') for line in page.reasons(models)]
    if failures:
        lines += ['', '| not proven | form | reason | what was said |', '|---|---|---|---|', *failures]
    return '\n'.join(lines) + '\n'


def short(name: str) -> str:
    """Return the name of a config without library and suffix."""
    return name.removeprefix(PREFIX).removesuffix('.py')


def row(record: Record, configs: int) -> str:
    """Return the row of a model that `configs` configs have."""
    (line,) = page.rows([record])
    _, fixed, dynamic, matched, _, iou, score, seconds = line.removeprefix('| ').split(' | ')
    cells = f'`{short(record.config)}`', str(configs), fixed, dynamic, matched, iou, score, seconds
    return f'| {" | ".join(cells)}'


def text_with(content: Mapping[str, Any]) -> str:
    """Return the text of the page with the section of a zoo; UsageError: the page has no place for it."""
    text = README.read_text(encoding='utf-8')
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f'{README}: expected the lines {BEGIN.strip()} and {END.strip()}')
    return before + BEGIN + section(content) + END + after


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0 done, 2 usage."""
    parser = cli.ArgumentParser(prog='python -m docs._pages.zoo.rotated', description=__doc__.splitlines()[0])
    parser.add_argument('found', nargs='?', type=Path, help='--out of `mm2onnx zoo`')
    cli.add_debug_option(parser)
    return cli.run(_body, parser, argv)


def _body(args: argparse.Namespace) -> int:
    if args.found:
        page.merge_into(DATA, page.records_of(args.found))
    text = text_with(read_json(DATA))
    with atomic_path(README) as temporary:
        temporary.write_text(text, encoding='utf-8')
    print(README.relative_to(page.ROOT))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
