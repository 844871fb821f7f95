"""Write docs/zoo.md and its Chinese twin: `python -m docs._pages.zoo.page work_dirs/zoo`.

The READMEs' line about the zoo is written with them.
Of a folder, all records of it count, which may be of several runs; of a `zoo.json`, those of one run. Without
either they are written again from docs/zoo.json, which is what the last file said.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, read_json, write_json
from mmdeploy_ext.core.pages import template
from mmdeploy_ext.zoo import summary
from mmdeploy_ext.zoo.record import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.zoo.record import Outcome, Record

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / 'docs/zoo.json'
PAGES = {'page.md.j2': ROOT / 'docs/zoo.md', 'page_zh.md.j2': ROOT / 'docs/zh-CN/zoo.md'}
"""Template -> page."""
BEGIN, END = '<!-- zoo -->', '<!-- end of the zoo -->'
READMES = {
    'README.md': (
        '**{fixed} of the 600 configs of mmdet 2.28.2 with a CPU reference are proven** with seeded weights, '
        '{dynamic} of them at any size too; {configs} of its 620 configs have been looked at. '
        '[The zoo](docs/zoo.md) has each of them, and the reasons of those that are not.'
    ),
    'README_zh-CN.md': (
        'mmdet 2.28.2 中有 CPU 参考结果的 600 个配置里，**{fixed} 个已用按规则生成的权重得到证明**，'
        '其中 {dynamic} 个在任意尺寸下也得到证明；全部 620 个配置中已检查 {configs} 个。'
        '每个配置的结果与未通过的原因见[模型库](docs/zh-CN/zoo.md)。'
    ),
}
"""File -> what it says of the zoo between its marks."""
LONGEST = 240
"""Characters of a reason."""


def page(name: str, content: Mapping[str, Any]) -> str:
    """Return a page as it is for a zoo.

    Args:
        name: of its template.
        content: of the JSON file.
    """
    records = summary.records(content)
    texts = template(__file__, name, keep_trailing_newline=True)
    return texts.render(
        versions=content['versions'],
        whole=summary.count(records),
        parts={part: counts(summary.by_part(records, part)) for part in ('head', 'backbone', 'neck')},
        heads={head: rows(group) for head, group in _by_head(records).items()},
        reasons=reasons(records),
    )


def readme(name: str, text: str, content: Mapping[str, Any]) -> str:
    """Return the text of a README with the figures of a zoo between its marks."""
    before, _, rest = text.partition(BEGIN)
    whole = summary.count(summary.records(content))
    said = READMES[name].format(**dataclasses.asdict(whole))
    return f'{before}{BEGIN}\n{said}\n{END}{rest.partition(END)[2]}'


def counts(groups: Mapping[str, summary.Count]) -> list[str]:
    """Return a row of cells for each name of a part."""
    return [
        f'| {name} | {one.configs} | {one.referenced} | {one.fixed} | {one.dynamic} | {one.own_kernels} |'
        for name, one in groups.items()
    ]


def _by_head(records: Sequence[Record]) -> dict[str, list[Record]]:
    heads = sorted({record.parts['head'] for record in records})
    return {head: [one for one in records if one.parts['head'] == head] for head in heads}


def rows(records: Sequence[Record]) -> list[str]:
    """Return a row of cells for each config."""
    return [f'| {" | ".join(_cells(record))} |' for record in records]


def _cells(record: Record) -> list[str]:
    done = [one for one in (record.fixed, record.dynamic) if one is not None and one.inputs]
    name = f'`{record.config.removesuffix(".py")}`'
    if record.same_as:
        name += f' as `{record.same_as.removesuffix(".py").rpartition("/")[2]}`'
    seconds = sum(one.seconds for one in (record.fixed, record.dynamic) if one is not None)
    ious = [one.worst_iou for one in done if one.worst_iou is not None]
    scores = [one.worst_score for one in done if one.worst_score is not None]
    return [
        name,
        _verdict(record.fixed) + (' *' if record.own_kernels else ''),
        _verdict(record.dynamic),
        f'{sum(one.matched for one in done)} / {sum(one.reference for one in done)}' if done else '',
        str(min(one.fewest for one in done)) if done else '',
        f'{min(ious):.6f}' if ious else '',
        f'{max(scores):.1e}' if scores else '',
        f'{seconds:.0f}',
    ]


def _verdict(outcome: Outcome | None) -> str:
    if outcome is None:
        return '-'
    return 'proven' if outcome.proven else outcome.reason


def reasons(records: Sequence[Record]) -> list[str]:
    """Return a row for each config and form that is not proven, and each that was changed for its proof."""
    found = []
    for record in records:
        name = f'`{record.config.removesuffix(".py")}`'
        for form in ('fixed', 'dynamic'):
            outcome = getattr(record, form)
            if outcome is not None and not outcome.proven:
                found.append(f'| {name} | {form} | {outcome.reason} | {_short(outcome.why)} |')
        found += [f'| {name} | - | - | {note} |' for note in record.notes]
    return found


def _short(why: str) -> str:
    """Return a reason for a cell: the end of a trace, the beginning of a message."""
    lines = [line for line in why.splitlines() if line.strip()]
    text = cli.one_line(lines[-1] if len(lines) > 1 else why)
    text = text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
    return re.sub(r'([|<>_*`\[\]])', r'\\\1', text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write both pages; 0 done, 2 usage."""
    parser = cli.ArgumentParser(prog='python -m docs._pages.zoo.page', description=__doc__.splitlines()[0])
    parser.add_argument(
        'found', nargs='?', type=Path, help='--out of tools/analysis_tools/zoo.py, or a zoo.json of it'
    )
    cli.add_debug_option(parser)
    return cli.run(_body, parser, argv)


def _body(args: argparse.Namespace) -> int:
    if args.found:
        write_json(DATA, _of_runs(args.found) if args.found.is_dir() else read_json(args.found))
    content = read_json(DATA)
    texts = {path: page(name, content) for name, path in PAGES.items()}
    texts |= {
        ROOT / name: readme(name, (ROOT / name).read_text(encoding='utf-8'), content) for name in READMES
    }
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
        print(path.relative_to(ROOT))
    return 0


def _of_runs(folder: Path) -> dict[str, Any]:
    """Return the content of all records of a folder.

    Raises:
        UsageError: there is none.
    """
    found = [read_record(path) for path in sorted((folder / 'records').glob('*.json'))]
    if not any(found):
        raise UsageError(f'{folder}: no records/*.json, which tools/analysis_tools/zoo.py --out writes')
    return summary.content([record for record in found if record and record.fixed])


if __name__ == '__main__':
    raise SystemExit(main())
