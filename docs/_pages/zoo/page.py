"""Write docs/zoo.md, its Chinese twin and docs/zoo/: `python -m docs._pages.zoo.page FOLDER...`.

The READMEs' table of detectors is written with them.
All records of a folder count, which may be of several runs; of a `zoo.json`, those of one run. They are put
into docs/zoo.json or, of configs of mmdet3d, docs/zoo_mmdet3d.json, by `records.merge_records`. Without
FOLDER the pages are written again from these two.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs._pages.zoo import kinds, readme
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, one_line
from mmdeploy_ext.core.files import atomic_path, read_json, write_json
from mmdeploy_ext.core.pages import template
from mmdeploy_ext.zoo.records import (
    MEMORY,
    TIME,
    Count,
    count_records,
    merge_records,
    read_record,
    zoo_content,
    zoo_records,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.zoo.records import Outcome, Record

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / 'docs/zoo.json'
MMDET3D_DATA = ROOT / 'docs/zoo_mmdet3d.json'
"""Records of configs whose names begin with `OF_MMDET3D`."""
OF_MMDET3D = 'mmdet3d/'
PAGES = {'page.md.j2': ROOT / 'docs/zoo.md'}
"""Template -> page with the table of kinds."""
KIND_PAGES = ROOT / 'docs/zoo'
COLUMNS = """\
| config | one size | any size | matched | fewest | worst IoU | worst score difference | CPU s |
|---|---|---|---:|---:|---:|---:|---:|"""
COLUMNS_3D = """\
| config | one size | any size | matched | fewest | worst tensor error | worst distance, mm | worst score difference | CPU s |
|---|---|---|---:|---:|---:|---:|---:|---:|"""  # noqa: E501
USUAL_SIZE = (320, 448)
"""(H, W) of the traced input, pixels, which the tables leave out: the default of the zoo."""
EXPLANATIONS = {
    'objects365/retinanet_r50_fpn_syncbn_1350k_obj365v1.py': 'mmdet builds it neither: its base is '
    '`_base_/models/faster_rcnn_r50_fpn.py`, whose detector has no `bbox_head`, where RetinaNet was meant',
    'grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco.py': 'the limit was 5 GB',
    'hrnet/htc_hrnetv2p_w18_20e_coco.py': 'of the bright picture PyTorch itself keeps 99 of its 100 results '
    'with its layers in float64, an IoU of 0.994: `python tests/own_rounding.py`',
    'resnest/cascade_rcnn_s101_fpn_syncbn-backbone+head_mstrain-range_1x_coco.py': 'of the dark picture '
    'PyTorch itself keeps 99 of its 100 results with its layers in float64, scores 1.2e-4 off, although its '
    'features are within 1.2e-6: `python tests/own_rounding.py`',
}
"""Config -> what is behind the reason for which it is not proven."""
LONGEST = 400
"""Characters of a reason."""


def page(name: str, content: Mapping[str, Any]) -> str:
    """Return the page with the table of kinds.

    Args:
        name: of its template.
        content: of the JSON file of all records.
    """
    records, mmdet3d = split(content)
    texts = template(__file__, name, keep_trailing_newline=True)
    return texts.render(
        versions=content['versions'],
        mmdet=count_records(records),
        mmdet3d=count_records(mmdet3d),
        costs=pass_costs(records),
        kinds=[
            kind_row(kind, of_kind, link=f'zoo/{kind.page}.md')
            for kind in kinds.KINDS
            if (of_kind := kinds.records_of(kind, [*records, *mmdet3d]))
        ],
    )


def pass_costs(records: Sequence[Record]) -> dict[str, int]:
    """Return what passes over some records cost, by the CPU seconds in them.

    `spent_h` is the CPU hours of the exports in them, `rest_h` those of the exports of any size that were not
    tried, by the ratio of both exports of other models; `rest` is the number of these.
    """
    models = [record for record in records if record.proven and not record.same_as]
    dynamic = [record for record in models if record.dynamic and record.dynamic.inputs]
    both = [(record.fixed.seconds, record.dynamic.seconds) for record in dynamic]
    fixed_s, dynamic_s = (sum(seconds) for seconds in zip(*both, strict=True)) if both else (1.0, 0.0)
    untried = [record.fixed.seconds for record in models if record.dynamic is None]
    costs = [_seconds(record) for record in records if not record.same_as]
    return dict(
        spent_h=round(sum(costs) / 3600),
        rest_h=round(sum(untried) * dynamic_s / fixed_s / 3600),
        rest=len(untried),
    )


def kind_row(kind: kinds.Kind, records: Sequence[Record], link: str) -> str:
    """Return the row of a kind; `link` leads to its page."""
    count = count_records(records)
    fixed_only = [record for record in records if record.proven and record.dynamic is None]
    untried = [record for record in fixed_only if not record.own_kernels and not kind.any_input]
    cells = [
        f'[{kind.title}]({link})',
        count.configs,
        count.fixed,
        count.fixed if kind.any_input else count.dynamic,
        len(untried) or '',
        readme.of_records(records).errors('score', 'tensor'),
    ]
    return f'| {" | ".join(map(str, cells))} |'


def kind_page(kind: kinds.Kind, records: Sequence[Record]) -> str:
    """Return the page that lists the configs of a kind."""
    heads = {
        head: [cells_of(record, kind.in_3d) for record in group] for head, group in _by_head(records).items()
    }
    return template(__file__, 'kind.md.j2').render(
        title=kind.title,
        count=count_records(records),
        heads=heads,
        columns=COLUMNS_3D if kind.in_3d else COLUMNS,
        usual_size='{}x{}'.format(*USUAL_SIZE),
        reasons=reasons(records),
    )


def parts_page(records: Sequence[Record]) -> str:
    """Return the page that counts the configs by their parts."""
    parts = ('head', 'encoder', 'backbone', 'neck')
    return template(__file__, 'parts.md.j2').render(
        parts={part: counts(by_part(records, part)) for part in parts}
    )


def pages(content: Mapping[str, Any]) -> dict[Path, str]:
    """Return path -> text of every page of the zoo."""
    records = zoo_records(content)
    texts = {path: page(name, content) for name, path in PAGES.items()}
    texts[KIND_PAGES / 'parts.md'] = parts_page(records)
    for kind in kinds.KINDS:
        if of_kind := kinds.records_of(kind, records):
            texts[KIND_PAGES / f'{kind.page}.md'] = kind_page(kind, of_kind)
    return {path: f'{text.rstrip()}\n' for path, text in texts.items()}


def by_part(records: Sequence[Record], part: str) -> dict[str, Count]:
    """Return class name of a part -> counts, in the order of the names; several parts count each."""
    groups: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        for name in sorted(set(record.parts.get(part, '').split('+')) - {''}):
            groups[name].append(record)
    return {name: count_records(groups[name]) for name in sorted(groups)}


def split(content: Mapping[str, Any]) -> tuple[list[Record], list[Record]]:
    """Return the records of mmdet's and others' configs, and those of mmdet3d's."""
    records = zoo_records(content)
    mmdet3d = [record for record in records if record.config.startswith(OF_MMDET3D)]
    return [record for record in records if record not in mmdet3d], mmdet3d


def counts(groups: Mapping[str, Count]) -> list[str]:
    """Return a row of cells for each name of a part."""
    return [
        f'| {name} | {one.configs} | {one.referenced} | {one.fixed} | {one.dynamic} | {one.own_kernels} |'
        for name, one in groups.items()
    ]


def _by_head(records: Sequence[Record]) -> dict[str, list[Record]]:
    heads = sorted({record.parts['head'] for record in records})
    return {head: [record for record in records if record.parts['head'] == head] for head in heads}


def rows(records: Sequence[Record]) -> list[str]:
    """Return a row of cells for each config whose results are boxes or masks in a picture."""
    return [cells_of(record, in_3d=False) for record in records]


def cells_of(record: Record, in_3d: bool) -> str:
    """Return the row of a config, below `COLUMNS`, or `COLUMNS_3D` if its results are boxes in 3D."""
    outcomes = [outcome for outcome in (record.fixed, record.dynamic) if outcome and outcome.inputs]
    ious = [outcome.worst_iou for outcome in outcomes if outcome.worst_iou is not None]
    scores = [outcome.worst_score for outcome in outcomes if outcome.worst_score is not None]
    tensors = [outcome.worst_rel for outcome in outcomes if outcome.worst_rel is not None]
    distances = [outcome.worst_distance for outcome in outcomes if outcome.worst_distance is not None]
    in_picture = [f'{min(ious):.6f}' if ious else '']
    in_space = [
        f'{max(tensors):.1e}' if tensors else '',
        f'{1e3 * max(distances):.3f}' if distances else '',
    ]
    cells = [
        _named(record),
        _verdict(record.fixed) + (' *' if record.own_kernels else ''),
        _verdict(record.dynamic),
        _matched(record, outcomes) if outcomes else '',
        str(min(outcome.fewest for outcome in outcomes)) if outcomes else '',
        *(in_space if in_3d else in_picture),
        f'{max(scores):.1e}' if scores else '',
        f'{_seconds(record):.0f}',
    ]
    return f'| {" | ".join(cells)} |'


def _seconds(record: Record) -> float:
    return sum(outcome.seconds for outcome in (record.fixed, record.dynamic) if outcome)


def _named(record: Record) -> str:
    name = f'`{record.config.removesuffix(".py")}`'
    if record.same_as:
        name += f' as `{record.same_as.removesuffix(".py").rpartition("/")[2]}`'
    return name


def _matched(record: Record, outcomes: Sequence[Outcome]) -> str:
    """Return the matched results of some outcomes of a record, of panoptic maps with their classes."""
    text = (
        f'{sum(outcome.matched for outcome in outcomes)} / {sum(outcome.reference for outcome in outcomes)}'
    )
    classes = max(outcome.classes for outcome in outcomes)
    return f'{text}, {classes} classes' if classes and record.task == 'panoptic' else text


def _verdict(outcome: Outcome | None) -> str:
    """Return an outcome for a cell, with the size of the traced input where that is not the usual one."""
    if outcome is None:
        return '-'
    if not outcome.proven:
        return outcome.reason
    height, width = outcome.shape
    return f'proven, {height}x{width}' if height and outcome.shape != USUAL_SIZE else 'proven'


def reasons(records: Sequence[Record]) -> list[str]:
    """Return a row for each config and form that is not proven, and each that was changed for its proof."""
    lines = []
    for record in records:
        name = f'`{record.config.removesuffix(".py")}`'
        for form in ('fixed', 'dynamic'):
            outcome = getattr(record, form)
            if outcome is not None and not outcome.proven:
                explanation = EXPLANATIONS.get(record.config)
                stopped = outcome.reason in (MEMORY, TIME)  # the log behind the first line is of no use
                text = _short(outcome.why.partition('\n')[0] if stopped else outcome.why)
                text += f' ({explanation})' if explanation else ''
                lines.append(f'| {name} | {form} | {outcome.reason} | {text} |')
        lines += [f'| {name} | - | - | {note} |' for note in record.notes]
    return lines


def _short(why: str) -> str:
    """Return a reason for a cell: the end of a trace, the beginning of a message."""
    lines = [line for line in why.splitlines() if line.strip()]
    text = one_line(lines[-1] if len(lines) > 1 else why)
    text = text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
    return re.sub(r'([|<>_*`\[\]])', r'\\\1', text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write all pages; 0 done, 2 usage."""
    parser = cli.ArgumentParser(prog='python -m docs._pages.zoo.page', description=__doc__.splitlines()[0])
    parser.add_argument(
        'folders', nargs='*', type=Path, help='--out of tools/analysis_tools/zoo.py, or a zoo.json of it'
    )
    cli.add_debug_option(parser)
    return cli.run(_body, parser, argv)


def _body(args: argparse.Namespace) -> int:
    for path in args.folders:
        _merge(records_of(path) if path.is_dir() else read_json(path))
    content = whole()
    texts = pages(content)
    for name in readme.TEMPLATES:
        text = (ROOT / name).read_text(encoding='utf-8')
        texts[ROOT / name] = readme.readme(name, text, *split(content))
    KIND_PAGES.mkdir(exist_ok=True)
    for path in set(KIND_PAGES.glob('*.md')) - set(texts):
        path.unlink()
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
        print(path.relative_to(ROOT))
    return 0


def whole() -> dict[str, Any]:
    """Return the content of both files, with the versions of the first."""
    content, *others = (read_json(path) for path in (DATA, MMDET3D_DATA) if path.is_file())
    return dict(
        content, configs=[*content['configs'], *(entry for other in others for entry in other['configs'])]
    )


def _merge(content: Mapping[str, Any]) -> None:
    """Put new records into the two files, with the versions that they were made with."""
    for path, records in zip((DATA, MMDET3D_DATA), split(content), strict=True):
        if records:
            merge_into(path, dict(content, configs=[dataclasses.asdict(record) for record in records]))


def merge_into(path: Path, content: Mapping[str, Any]) -> None:
    """Put the records of `content` into the JSON file of a zoo, with the versions that made them."""
    earlier = zoo_records(read_json(path)) if path.is_file() else []
    merged = zoo_content(merge_records(earlier, zoo_records(content)))
    write_json(path, dict(merged, versions=content['versions']))


def records_of(folder: Path) -> dict[str, Any]:
    """Return the content of all records of a folder.

    Raises:
        UsageError: there is none.
    """
    records = [read_record(path) for path in sorted((folder / 'records').glob('*.json'))]
    if not any(records):
        raise UsageError(f'{folder}: no records/*.json, which tools/analysis_tools/zoo.py --out writes')
    return zoo_content([record for record in records if record and (record.fixed or record.dynamic)])


if __name__ == '__main__':
    raise SystemExit(main())
