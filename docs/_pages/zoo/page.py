"""Write docs/zoo.md and its Chinese twin: `python -m docs._pages.zoo.page work_dirs/zoo`.

The READMEs' table of detectors is written with them.
Of a folder, all records of it count, which may be of several runs; of a `zoo.json`, those of one run. They
replace docs/zoo.json or, of LiDAR detectors of mmdet3d, docs/zoo_lidar.json; without records of either, it
stays. Without FOUND the pages are written again from these two.
"""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._pages.zoo import readme
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, read_json, write_json
from mmdeploy_ext.core.pages import template
from mmdeploy_ext.zoo.records import Count, count_records, read_record, zoo_content, zoo_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.zoo.records import Outcome, Record

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / 'docs/zoo.json'
LIDAR = ROOT / 'docs/zoo_lidar.json'
"""Records of configs whose names begin with `OF_MMDET3D`."""
OF_MMDET3D = 'mmdet3d/'
PAGES = {'page.md.j2': ROOT / 'docs/zoo.md', 'page_zh.md.j2': ROOT / 'docs/zh-CN/zoo.md'}
"""Template -> page."""
LONGEST = 240
"""Characters of a reason."""


def page(name: str, content: Mapping[str, Any]) -> str:
    """Return a page as it is for a zoo.

    Args:
        name: of its template.
        content: of the JSON file.
    """
    records, lidar = split(content)
    texts = template(__file__, name, keep_trailing_newline=True)
    return texts.render(
        versions=content['versions'],
        whole=count_records(records),
        parts={part: counts(by_part(records, part)) for part in ('head', 'backbone', 'neck')},
        heads={head: rows(group) for head, group in _by_head(records).items()},
        lidar=count_records(lidar),
        lidar_parts=[
            f'| {name} | {one.configs} | {one.fixed} |'
            for part in ('head', 'encoder', 'backbone')
            for name, one in by_part(lidar, part).items()
        ],
        lidar_heads={head: lidar_rows(group) for head, group in _by_head(lidar).items()},
        reasons=reasons([*records, *lidar]),
    )


def by_part(chosen: Sequence[Record], part: str) -> dict[str, Count]:
    """Return class name of a part -> counts, in the order of the names; several parts count each."""
    groups: dict[str, list[Record]] = collections.defaultdict(list)
    for record in chosen:
        for name in sorted(set(record.parts.get(part, '').split('+')) - {''}):
            groups[name].append(record)
    return {name: count_records(groups[name]) for name in sorted(groups)}


def split(content: Mapping[str, Any]) -> tuple[list[Record], list[Record]]:
    """Return the records of mmdet's and others' configs, and those of LiDAR detectors of mmdet3d."""
    records = zoo_records(content)
    lidar = [one for one in records if one.config.startswith(OF_MMDET3D)]
    return [one for one in records if one not in lidar], lidar


def counts(groups: Mapping[str, Count]) -> list[str]:
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
    seconds = sum(one.seconds for one in (record.fixed, record.dynamic) if one is not None)
    ious = [one.worst_iou for one in done if one.worst_iou is not None]
    scores = [one.worst_score for one in done if one.worst_score is not None]
    return [
        _named(record),
        _verdict(record.fixed) + (' *' if record.own_kernels else ''),
        _verdict(record.dynamic),
        f'{sum(one.matched for one in done)} / {sum(one.reference for one in done)}' if done else '',
        str(min(one.fewest for one in done)) if done else '',
        f'{min(ious):.6f}' if ious else '',
        f'{max(scores):.1e}' if scores else '',
        f'{seconds:.0f}',
    ]


def _named(record: Record) -> str:
    name = f'`{record.config.removesuffix(".py")}`'
    if record.same_as:
        name += f' as `{record.same_as.removesuffix(".py").rpartition("/")[2]}`'
    return name


def lidar_rows(records: Sequence[Record]) -> list[str]:
    """Return a row of cells for each config of a LiDAR detector."""
    return [f'| {" | ".join(_lidar_cells(record))} |' for record in records]


def _lidar_cells(record: Record) -> list[str]:
    found = record.fixed
    name = _named(record).replace(OF_MMDET3D, '')
    if found is None or not found.inputs:
        return [name, _verdict(found), *[''] * 6]
    return [
        name,
        _verdict(found),
        f'{found.matched} / {found.reference}',
        str(found.fewest),
        '' if found.worst_rel is None else f'{found.worst_rel:.1e}',
        '' if found.worst_distance is None else f'{1e3 * found.worst_distance:.3f}',
        '' if found.worst_score is None else f'{found.worst_score:.1e}',
        f'{found.seconds:.0f}',
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
        _replace(records_of(args.found) if args.found.is_dir() else read_json(args.found))
    content = whole()
    texts = {path: page(name, content) for name, path in PAGES.items()}
    for name in readme.TEMPLATES:
        text = (ROOT / name).read_text(encoding='utf-8')
        texts[ROOT / name] = readme.readme(name, text, *split(content))
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
        print(path.relative_to(ROOT))
    return 0


def whole() -> dict[str, Any]:
    """Return the content of both files, with the versions of the first."""
    content, *others = (read_json(path) for path in (DATA, LIDAR) if path.is_file())
    return dict(
        content, configs=[*content['configs'], *(one for other in others for one in other['configs'])]
    )


def _replace(content: Mapping[str, Any]) -> None:
    """Write the records of either file that there are any of."""
    lidar = [one for one in content['configs'] if one['config'].startswith(OF_MMDET3D)]
    others = [one for one in content['configs'] if one not in lidar]
    for path, chosen in ((DATA, others), (LIDAR, lidar)):
        if chosen:
            write_json(path, dict(content, configs=chosen))


def records_of(folder: Path) -> dict[str, Any]:
    """Return the content of all records of a folder.

    Raises:
        UsageError: there is none.
    """
    found = [read_record(path) for path in sorted((folder / 'records').glob('*.json'))]
    if not any(found):
        raise UsageError(f'{folder}: no records/*.json, which tools/analysis_tools/zoo.py --out writes')
    return zoo_content([record for record in found if record and record.fixed])


if __name__ == '__main__':
    raise SystemExit(main())
