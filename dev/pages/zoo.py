"""Write the pages about the zoo: docs/zoo.md, docs/zoo/ and projects/mmrotate/README.md.

`python -m dev.pages.zoo FOLDER...` puts the records of folders, each the `--out` of
tools/analysis_tools/zoo.py, into the JSON files of `DATA` and writes the pages. Without FOLDER the pages are
written from these files.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dev.pages.tables import table, write_between
from dev.zoo.records import (
    EXPORT_KINDS,
    MEMORY,
    TIME,
    count_records,
    merge_records,
    read_record,
    zoo_content,
    zoo_records,
)
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.base.files import read_json, write_json
from mmdeploy_ext.families.detector import TRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dev.zoo.records import Outcome, Record

ROOT = Path(__file__).resolve().parents[2]
ROTATED = 'mmrotate/'
DATA = {
    'mmdet3d/': ROOT / 'docs/zoo_mmdet3d.json',
    ROTATED: ROOT / 'projects/mmrotate/zoo.json',
    '': ROOT / 'docs/zoo.json',
}
"""First word of a config's name -> file of its record; '' stands for all other names."""
MMDET3 = ROOT / 'docs/mmdet3.json'
"""Counts of mmdet 3's configs, of dev/mmdet3_configs.py, and comparisons of both versions."""
USUAL_SIZE = (320, 448)
"""(H, W) of the traced input, pixels: the default of the zoo. Tables leave it out."""
LONGEST = 300
"""Characters of a reason."""
EXPLANATIONS = {
    'objects365/retinanet_r50_fpn_syncbn_1350k_obj365v1.py': 'mmdet builds it neither: its base is '
    '`_base_/models/faster_rcnn_r50_fpn.py`, whose detector has no `bbox_head`, where RetinaNet was meant',
    'grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco.py': 'the limit was 5 GB',
    'hrnet/htc_hrnetv2p_w18_20e_coco.py': 'of the bright picture PyTorch itself keeps 99 of its 100 results '
    'with its layers in float64, an IoU of 0.994',
    'resnest/cascade_rcnn_s101_fpn_syncbn-backbone+head_mstrain-range_1x_coco.py': 'of the dark picture '
    'PyTorch itself keeps 99 of its 100 results with its layers in float64, scores 1.2e-4 off, although its '
    'features are within 1.2e-6',
}
"""Config -> what is behind the reason for which it is not proven."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of detectors: a row of docs/zoo.md, and a page.

    Attributes:
        page: stem of its page in docs/zoo/.
        title: English name.
        families: families of its configs.
        tasks: tasks of its configs, see `Record.task`; () for all.
        detectors: classes of detectors whose traced test path it is.
        any_input: whether one file takes any input, so that there is no second export.
        in_3d: whether results are boxes in 3D, which differ by metres and not by IoU.
    """

    page: str
    title: str
    families: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    any_input: bool = False
    in_3d: bool = False


ANCHORS = 'anchor3d', 'mvxnet'
CAMERAS = 'bevformer', 'petr', 'petrv2', 'streampetr', 'sparse4d', 'bevfusion_det'
PICTURES_3D = 'monocular', 'smoke', 'imvoxelnet'
NO_FAMILY = Kind('no-family', 'Cannot be built, or of no family', ())
KINDS = (
    Kind('one-stage', 'One-stage detectors', ('dense',)),
    Kind('two-stage', 'Two-stage detectors: boxes', ('two_stage',), ('bbox2d',)),
    Kind('two-stage-masks', 'Two-stage detectors: masks', ('two_stage',), ('boxed_mask',)),
    Kind(
        'queries',
        'Detectors of queries: boxes and masks',
        ('query',),
        ('bbox2d', 'mask', 'boxed_mask'),
        ('DETR', 'DeformableDETR', 'SparseRCNN', 'QueryInst'),
    ),
    Kind('panoptic', 'Panoptic segmentation', ('two_stage', 'query'), ('panoptic',)),
    Kind('solo', 'SOLO, SOLOv2, Decoupled SOLO', ('solo',)),
    Kind('yolact', 'YOLACT', ('yolact',), detectors=('YOLACT',)),
    Kind('corner', 'CornerNet, CentripetalNet', ('corner',), detectors=('CornerNet',)),
    Kind('lidar-anchors', 'LiDAR: anchors', ANCHORS, any_input=True, in_3d=True),
    Kind('lidar-centres', 'LiDAR: centres', ('centerpoint',), any_input=True, in_3d=True),
    Kind('one-camera', 'One camera: boxes in 3D', PICTURES_3D, in_3d=True),
    Kind('many-cameras', 'Several cameras: boxes in 3D', CAMERAS, any_input=True, in_3d=True),
)


def by_kind(records: Sequence[Record]) -> dict[Kind, list[Record]]:
    """Return kind -> its records, for kinds that have some; `NO_FAMILY` has records of unlisted families."""
    groups = collections.defaultdict(list)
    listed = {family for kind in KINDS for family in kind.families}
    detectors = {detector for kind in KINDS for detector in kind.detectors}
    for kind in KINDS:
        for record in records:
            is_traced = record.family == TRACED and record.parts['detector'] in kind.detectors
            of_family = record.family in kind.families and (not kind.tasks or record.task in kind.tasks)
            if is_traced or of_family:
                groups[kind].append(record)
    others = [record for record in records if record.family not in listed]
    others = [one for one in others if one.family != TRACED or one.parts['detector'] not in detectors]
    if others:
        groups[NO_FAMILY] = others
    return groups


# ---- docs/zoo.md


def overview(records: Sequence[Record], versions: Mapping[str, str], translated: Mapping[str, int]) -> str:
    """Return the part of docs/zoo.md between its marks.

    `translated` is the count of mmdet 3's translated configs by family and task, such as `dense bbox2d`.
    """
    numbers = ['configs', 'proven, one size', 'proven, any size', 'not tried at any size', 'mmdet 3.3']
    headings = ['kind', *numbers[:-1], 'worst error', numbers[-1]]
    rows = [
        [*kind_row(kind, of_kind), translated_of(kind, translated)]
        for kind, of_kind in by_kind(records).items()
    ]
    lidar = [record for record in records if record.config.startswith('mmdet3d/')]
    mmdet3d, mmdet = count_records(lidar), count_records([one for one in records if one not in lidar])
    return f"""{table(headings, rows, right=numbers)}
**{mmdet.fixed} of the {mmdet.referenced} mmdet configs with a CPU reference are proven, {mmdet.dynamic} of them also at any size**; {mmdet.configs} were tested. For {mmdet.own_kernels} more, mmcv has no CPU kernel; they are proven against a kernel of this project and not counted above. **{mmdet3d.fixed} of the {mmdet3d.referenced}** mmdet3d configs with a CPU reference are proven; {mmdet3d.configs} were tested. The other {mmdet3d.configs - mmdet3d.referenced} need operators that mmcv has only for a GPU: {mmdet3d.own_kernels} (`DynamicScatter`) are proven against a kernel of this project, the rest are refused and name the operators.

Measured with torch {versions['torch']}, mmdet {versions['mmdet']} and ONNX Runtime {versions['onnxruntime']}.
"""  # noqa: E501


def translated_of(kind: Kind, translated: Mapping[str, int]) -> int | str:
    """Return the count of mmdet 3's configs of a kind, or ''."""
    counts = [
        count
        for (family, task), count in ((name.split(), count) for name, count in translated.items())
        if family in kind.families and (not kind.tasks or task in kind.tasks)
    ]
    return sum(counts) or ''


def kind_row(kind: Kind, records: Sequence[Record]) -> list[object]:
    """Return the row of a kind."""
    count = count_records(records)
    untried = [one for one in records if one.proven and one.dynamic is None and not one.own_kernels]
    return [
        f'[{kind.title}](zoo/{kind.page}.md)',
        count.configs,
        count.fixed,
        count.fixed if kind.any_input else count.dynamic,
        '' if kind.any_input else len(untried) or '',
        worst_error(records),
    ]


def worst_error(records: Sequence[Record]) -> str:
    """Return the worst errors of proofs against the libraries' own kernels."""
    proofs = [
        outcome
        for record in records
        if not record.own_kernels
        for outcome in (record.fixed, record.dynamic)
        if outcome and outcome.proven
    ]
    score, tensor, distance_m = (worst(proofs, name) for name in ('score', 'rel', 'distance'))
    iou = worst(proofs, 'iou', min)
    words = []
    if score is not None:
        words.append(f'score {_power(score)}')
    if iou is not None:
        words.append(f'IoU {math.floor(iou * 1e4) / 1e4:.4f}')
    if distance_m is not None:
        words.append(f'{1e3 * distance_m:.2g} mm')
    if not words and tensor is not None:
        words.append(f'tensor {_power(tensor)}')
    return ', '.join(words)


def _power(value: float) -> str:
    return f'{value:.1e}'.replace('e-0', 'e-') if value else '0'


def worst(
    outcomes: Iterable[Outcome], name: str, choose: Callable[[list[float]], float] = max
) -> float | None:
    """Return the worst value of `Outcome.worst_<name>`; None if it was not measured."""
    values = [getattr(outcome, f'worst_{name}') for outcome in outcomes]
    measured = [value for value in values if value is not None]
    return choose(measured) if measured else None


# ---- docs/zoo/


def kind_page(kind: Kind, records: Sequence[Record]) -> str:
    """Return the page that lists the configs of a kind."""
    count = count_records(records)
    summary = f'**{count.fixed} of {count.configs} configs are proven'
    summary += f', {count.dynamic} of them at any size too.**' if count.dynamic else '.**'
    if count.own_kernels:
        summary += f' {count.own_kernels} more are marked with `*`.'
    text = f"""[The zoo](../zoo.md)

# {kind.title}

{summary}

Errors are the worst of all pairs of results. Inputs were traced at {USUAL_SIZE[0]}x{USUAL_SIZE[1]} unless a size is given. `*`: proven against a kernel of this project. "Also" lists configs that differ from a row only in settings for training.
"""  # noqa: E501
    errors = ['worst tensor error', 'worst distance, mm'] if kind.in_3d else ['worst IoU']
    numbers = ['matched', *errors, 'worst score difference']
    headings = ['config', 'one size', 'any size', *numbers]
    for head in sorted({record.parts['head'] for record in records}):
        of_head = [record for record in records if record.parts['head'] == head]
        names = {record.config for record in of_head}
        own = [record for record in of_head if record.same_as not in names]
        rows = [config_row(record, kind.in_3d) for record in own]
        text += f'\n## {head or "Heads unknown"}\n\n{table(headings, rows, right=numbers)}'
        for record in own:
            if same := [_name(one) for one in of_head if one.same_as == record.config]:
                text += f'\n- Also as {_name(record)}: {", ".join(same)}'
        text += '\n' if text[-1] != '\n' else ''
    if rows := reasons(records):
        text += f"""
## Why not

{table(['config', 'form', 'reason', 'what was said'], rows)}"""
    return text


def config_row(record: Record, in_3d: bool) -> list[str]:
    """Return the row of a config."""
    outcomes = [outcome for outcome in (record.fixed, record.dynamic) if outcome]
    compared = [outcome for outcome in outcomes if outcome.inputs]
    matched = ''
    if compared:
        matched = f'{sum(one.matched for one in compared)}/{sum(one.reference for one in compared)}'
        classes = max(outcome.classes for outcome in compared)
        if classes and record.task == 'panoptic':
            matched += f', {classes} classes'
    iou, score, tensor, distance_m = (
        worst(compared, 'iou', min), *(worst(compared, name) for name in ('score', 'rel', 'distance'))
    )  # fmt: skip
    errors = ['' if iou is None else f'{iou:.6f}']
    if in_3d:
        errors = [
            '' if tensor is None else f'{tensor:.1e}',
            '' if distance_m is None else f'{1e3 * distance_m:.3f}',
        ]
    return [
        _name(record),
        _verdict(record.fixed) + (' *' if record.own_kernels else ''),
        _verdict(record.dynamic),
        matched,
        *errors,
        '' if score is None else f'{score:.1e}',
    ]


def _name(record: Record) -> str:
    return f'`{record.config.removesuffix(".py")}`'


def _verdict(outcome: Outcome | None) -> str:
    """Return an outcome for a cell, with the size of the traced input unless it is `USUAL_SIZE`."""
    if outcome is None:
        return '-'
    if not outcome.proven:
        return outcome.reason
    height, width = outcome.shape
    return f'proven, {height}x{width}' if height and outcome.shape != USUAL_SIZE else 'proven'


def reasons(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each reason an export is not proven, and for each change that a proof needed."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        for form in EXPORT_KINDS:
            outcome = getattr(record, form)
            if outcome is not None and not outcome.proven:
                stopped = outcome.reason in (MEMORY, TIME)  # the log behind the first line is of no use
                why = outcome.why.partition('\n')[0] if stopped else outcome.why
                config = record.config.removeprefix('mmdet3d/').removeprefix(ROTATED)
                text = _short(why.replace(f'{config}: ', ''))
                if record.config in EXPLANATIONS:
                    text += f' ({EXPLANATIONS[record.config]})'
                groups.setdefault((form, outcome.reason, text), []).append(_name(record))
        for note in record.notes:
            groups.setdefault(('-', '-', note), []).append(_name(record))
    return [[', '.join(names), *cells] for cells, names in groups.items()]


def _short(why: str) -> str:
    """Return a reason for a cell: the end of a trace, the beginning of a message."""
    lines = [line for line in why.splitlines() if line.strip()]
    text = one_line(lines[-1] if len(lines) > 1 else why)
    text = text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
    return re.sub(r'([|<>_*`\[\]])', r'\\\1', text)


def parts_page(records: Sequence[Record]) -> str:
    """Return the page that counts the configs by their parts; a config counts for each of its heads."""
    text = """[The zoo](../zoo.md)

# Heads, backbones and necks of the zoo

A config counts for each of its heads. "Against our kernel": mmcv lacks a kernel on a CPU, and the config is proven against one of this project.
"""  # noqa: E501
    headings = [
        'configs',
        'with a CPU reference',
        'proven, one size',
        'proven, any size',
        'against our kernel',
    ]
    for part in ('head', 'encoder', 'backbone', 'neck'):
        groups = collections.defaultdict(list)
        for record in records:
            for name in set(record.parts.get(part, '').split('+')) - {''}:
                groups[name].append(record)
        counts = {name: count_records(groups[name]) for name in sorted(groups)}
        rows = [
            [name, count.configs, count.referenced, count.fixed, count.dynamic, count.own_kernels]
            for name, count in counts.items()
        ]
        text += f'\n## By {part}\n\n{table([part, *headings], rows, right=headings)}'
    return text


# ---- projects/mmrotate/README.md


def rotated_section(records: Sequence[Record]) -> str:
    """Return the part of the README of mm2onnx-mmrotate between its marks: a row for each model."""
    count = count_records(records)
    sizes = collections.Counter(record.same_as or record.config for record in records)
    models = [record for record in records if not record.same_as]
    rows = []
    for record in models:
        name, fixed, dynamic, *figures = config_row(record, in_3d=False)
        rows.append([name.replace(ROTATED, ''), sizes[record.config], fixed, dynamic, *figures])
    same = [
        f'{_name(record)} as `{record.same_as.removesuffix(".py").rpartition("/")[2]}`'.replace(ROTATED, '')
        for record in records
        if record.same_as
    ]
    failures = [[cell.replace(ROTATED, '') for cell in row] for row in reasons(models)]
    numbers = ['configs', 'matched', 'worst IoU', 'worst score']
    headings = ['model', 'configs', 'one size', 'any size', *numbers[1:]]
    return f"""**{count.fixed} configs with a CPU reference are proven for one size, {count.dynamic} of them also for any size and batch**; {count.own_kernels} more for one size against our kernel (`*`). Each row is a model, with the number of configs that differ only in training or data.

{table(headings, rows, right=numbers)}
Proven as another config of the table: {', '.join(same)}.

{table(['not proven', 'form', 'reason', 'what was said'], failures)}"""  # noqa: E501


# ---- files


def merge(found: Sequence[Record]) -> None:
    """Put records into the files of `DATA`, with the versions of this environment."""
    for prefix, path in DATA.items():
        of_file = [record for record in found if record.config.startswith(prefix)]
        found = [record for record in found if record not in of_file]
        if of_file:
            earlier = zoo_records(read_json(path)) if path.is_file() else []
            write_json(path, zoo_content(merge_records(earlier, of_file)))


def write_pages() -> None:
    """Write all pages from the files of `DATA`."""
    lidar, rotated, pictures = (read_json(path) for path in DATA.values())
    records = [*zoo_records(pictures), *zoo_records(lidar)]
    pages = {kind.page: kind_page(kind, of_kind) for kind, of_kind in by_kind(records).items()}
    pages['parts'] = parts_page(records)
    for name, text in pages.items():
        (ROOT / f'docs/zoo/{name}.md').write_text(text, encoding='utf-8')
    translated = read_json(MMDET3)['configs']['families']
    write_between(ROOT / 'docs/zoo.md', 'zoo', overview(records, pictures['versions'], translated))
    write_between(ROOT / 'projects/mmrotate/README.md', 'zoo', rotated_section(zoo_records(rotated)))


def main() -> None:
    """Merge the records of folders and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('folders', nargs='*', type=Path, help='--out of tools/analysis_tools/zoo.py')
    args = parser.parse_args()
    for folder in args.folders:
        found = [read_record(path) for path in sorted((folder / 'records').glob('*.json'))]
        tried = [record for record in found if record and (record.fixed or record.dynamic)]
        if not tried:
            parser.error(f'{folder}: no records/*.json, which tools/analysis_tools/zoo.py --out writes')
        merge(tried)
    write_pages()


if __name__ == '__main__':
    main()
