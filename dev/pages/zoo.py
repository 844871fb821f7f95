"""Write the pages about the zoo: docs/zoo.md, docs/zoo-configs.md and projects/mmrotate/README.md.

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
CONFIGS = ROOT / 'docs/zoo-configs.md'
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
    """A kind of detectors: a row of docs/zoo.md, and a table of docs/zoo-configs.md.

    Attributes:
        title: English name.
        families: families of its configs.
        tasks: tasks of its configs, see `Record.task`; () for all.
        detectors: classes of detectors whose traced test path it is.
        any_input: whether one file takes any input, so that there is no second export.
        in_3d: whether results are boxes in 3D, which differ by metres and not by IoU.
    """

    title: str
    families: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    any_input: bool = False
    in_3d: bool = False


ANCHORS = 'anchor3d', 'mvxnet'
CAMERAS = 'bevformer', 'petr', 'petrv2', 'streampetr', 'sparse4d', 'bevfusion_det'
PICTURES_3D = 'monocular', 'smoke', 'imvoxelnet'
NO_FAMILY = Kind('Cannot be built, or of no family', ())
KINDS = (
    Kind('One-stage detectors', ('dense',)),
    Kind('Two-stage detectors: boxes', ('two_stage',), ('bbox2d',)),
    Kind('Two-stage detectors: masks', ('two_stage',), ('boxed_mask',)),
    Kind(
        'Detectors of queries: boxes and masks',
        ('query',),
        ('bbox2d', 'mask', 'boxed_mask'),
        ('DETR', 'DeformableDETR', 'SparseRCNN', 'QueryInst'),
    ),
    Kind('Panoptic segmentation', ('two_stage', 'query'), ('panoptic',)),
    Kind('SOLO, SOLOv2, Decoupled SOLO', ('solo',)),
    Kind('YOLACT', ('yolact',), detectors=('YOLACT',)),
    Kind('CornerNet, CentripetalNet', ('corner',), detectors=('CornerNet',)),
    Kind('LiDAR: anchors', ANCHORS, any_input=True, in_3d=True),
    Kind('LiDAR: centres', ('centerpoint',), any_input=True, in_3d=True),
    Kind('One camera: boxes in 3D', PICTURES_3D, in_3d=True),
    Kind('Several cameras: boxes in 3D', CAMERAS, any_input=True, in_3d=True),
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
    anchor = re.sub(r'[^\w\- ]', '', kind.title.lower()).replace(' ', '-')
    return [
        f'[{kind.title}](zoo-configs.md#{anchor})',
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


# ---- docs/zoo-configs.md


def configs_page(records: Sequence[Record]) -> str:
    """Return the page with a row for each config, which the site's script filters."""
    text = f"""# All configs of the zoo

{len(records)} configs of [the zoo](zoo.md): search this page for a config, a head, a backbone or a reason. Errors are the worst of all pairs of results. Inputs were traced at {USUAL_SIZE[0]}x{USUAL_SIZE[1]} unless a size is given. `*`: proven against a kernel of this project, because mmcv lacks one on a CPU. "=": only settings for training differ from that config.
"""  # noqa: E501
    numbers = ['matched', 'worst error']
    headings = ['config', 'head', 'backbone', 'one size', 'any size', *numbers]
    for kind, of_kind in by_kind(records).items():
        proven = {record.config for record in of_kind}
        rows = [config_row(record, kind.in_3d, record.same_as in proven) for record in of_kind]
        text += f'\n## {kind.title}\n\n{table(headings, rows, right=numbers)}'
    text += f"""
## Why not

{table(['config', 'form', 'reason', 'what was said'], reasons(records))}"""
    return text


def config_row(record: Record, in_3d: bool, is_same: bool) -> list[str]:
    """Return the row of a config; `is_same`: it has the results of `record.same_as`, which has a row."""
    parts = [record.parts.get(part, '').replace('+', ', ') for part in ('head', 'backbone')]
    verdicts = [_verdict(record.fixed) + (' *' if record.own_kernels else ''), _verdict(record.dynamic)]
    if is_same and record.proven:
        return [_name(record), *parts, *verdicts, f'= {Path(record.same_as).stem}', '']
    return [_name(record), *parts, *verdicts, *figures(record, in_3d)]


def figures(record: Record, in_3d: bool) -> list[str]:
    """Return matched results and worst errors of a config, for cells."""
    compared = [outcome for outcome in (record.fixed, record.dynamic) if outcome and outcome.inputs]
    matched = ''
    if compared:
        matched = f'{sum(one.matched for one in compared)}/{sum(one.reference for one in compared)}'
        classes = max(outcome.classes for outcome in compared)
        if classes and record.task == 'panoptic':
            matched += f', {classes} classes'
    iou, score, tensor, distance_m = (
        worst(compared, 'iou', min), *(worst(compared, name) for name in ('score', 'rel', 'distance'))
    )  # fmt: skip
    words = [] if iou is None or in_3d else [f'IoU {iou:.6f}']
    if in_3d and distance_m is not None:
        words.append(f'{1e3 * distance_m:.3f} mm')
    if score is not None:
        words.append(f'score {score:.1e}')
    if in_3d and tensor is not None:
        words.append(f'tensor {tensor:.1e}')
    return [matched, ', '.join(words)]


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


# ---- projects/mmrotate/README.md


def rotated_section(records: Sequence[Record]) -> str:
    """Return the part of the README of mm2onnx-mmrotate between its marks: a row for each model."""
    count = count_records(records)
    sizes = collections.Counter(record.same_as or record.config for record in records)
    models = [record for record in records if not record.same_as]
    rows = []
    for record in models:
        name, _, _, fixed, dynamic, *compared = config_row(record, in_3d=False, is_same=False)
        rows.append([name.replace(ROTATED, ''), sizes[record.config], fixed, dynamic, *compared])
    same = [
        f'{_name(record)} as `{record.same_as.removesuffix(".py").rpartition("/")[2]}`'.replace(ROTATED, '')
        for record in records
        if record.same_as
    ]
    failures = [[cell.replace(ROTATED, '') for cell in row] for row in reasons(models)]
    numbers = ['configs', 'matched', 'worst error']
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
    CONFIGS.write_text(configs_page(records), encoding='utf-8')
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
