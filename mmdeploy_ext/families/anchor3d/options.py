"""LiDAR detectors with anchors: options, and the schema of the post-processing in their metadata."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.schema import COUNT, FLAG, Mismatch, items, number, one_of, open_record
from mmdeploy_ext.families.parts.options import LIDAR_CONTRACT, LIDAR_OPTIONS

METRES, SIZES = number(-1e6, 1e6), number(above=0, maximum=1e6)
"""Schemas of coordinates and of sizes of anchors: float32 has room for the squares of such numbers."""
NUMBERS_PER_ENTRY = dict(ranges=6, sizes=3, cells=2)
"""List of numbers -> how many of them make up one entry."""


def check_anchors(facts: Mapping[str, Any], key: str) -> None:
    """Refuse incomplete entries, and numbers of ranges, sizes, maps and levels that do not fit together.

    `facts` is the entry of the metadata; `key`, its place, is not used.
    """
    counts = {}
    for name, entry_length in NUMBERS_PER_ENTRY.items():
        counts[name], rest = divmod(len(facts.get(name, ())), entry_length)
        if rest:
            raise Mismatch(f'{name} has {len(facts[name])} numbers, expected {entry_length} for each entry')
    for name in ('sizes', 'cells'):
        needed = facts.get('size_per_range') if name == 'sizes' else facts.get('cells')
        if needed and counts[name] != counts['ranges']:
            raise Mismatch(f'{name} has {counts[name]} entries, ranges has {counts["ranges"]}')
    if {'scales', 'levels'} <= facts.keys() and len(facts['scales']) != facts['levels']:
        raise Mismatch(f'scales has {len(facts["scales"])} entries, levels is {facts["levels"]}')


OPTIONS = tuple(
    dataclasses.replace(option, choices=option.choices[:1]) if option == LIDAR_CONTRACT else option
    for option in LIDAR_OPTIONS
)
"""The options of LiDAR detectors; of the contracts there is only the first, 'deploy'."""
POSTPROCESS = open_record(
    points=one_of('pillars'),
    num_classes=COUNT,
    code_size=number(7, 9, integer=True),
    levels=COUNT,
    aligned=FLAG,
    align_corner=FLAG,
    ranges=items(METRES, 6),
    sizes=items(SIZES, 3),
    rotations=items(number(), 1),
    scales=items(SIZES, 1),
    size_per_range=FLAG,
    dir_offset=number(),
    dir_limit_offset=number(),
    nms_pre=number(integer=True),
    score_thr=number(),
    nms_thr=number(0),
    rotated=FLAG,
    max_num=COUNT,
    cells=items(COUNT, 2),
    also=check_anchors,
)
"""Schema of `graphs.postprocess_facts`; its keys are explained by `AnchorRule`."""
