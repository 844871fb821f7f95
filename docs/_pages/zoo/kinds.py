"""The kinds of detectors that the zoo's table has a row for, and a page each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.zoo.records import Record


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of detectors.

    Attributes:
        page: stem of its page below docs/zoo/.
        families: families whose configs belong to it; '' is that of configs that no family takes.
        title: English name.
        any_input: whether there is one file that takes any input, and none of a fixed size.
        in_3d: whether results are boxes in 3D, which differ by metres and not by IoU.
    """

    page: str
    families: tuple[str, ...]
    title: str
    any_input: bool = False
    in_3d: bool = False


TWO_STAGES = 'two_stage', 'two_stage_regions', 'two_stage_image_branch'
QUERIES = 'query', 'query_regions', 'query_masks', 'query_regions_masks'
PANOPTIC = 'two_stage_panoptic', 'query_panoptic'
ANCHORS = 'anchor3d', 'mvxnet'
CAMERAS = 'bevformer', 'petr', 'petrv2', 'streampetr', 'sparse4d', 'bevfusion_det'
PICTURES_3D = 'monocular', 'smoke', 'imvoxelnet'
KINDS = (
    Kind('one-stage', ('dense',), 'One-stage detectors'),
    Kind('two-stage', TWO_STAGES, 'Two-stage detectors: boxes'),
    Kind('two-stage-masks', ('two_stage_masks',), 'Two-stage detectors: masks'),
    Kind('queries', QUERIES, 'Detectors of queries: boxes and masks'),
    Kind('panoptic', PANOPTIC, 'Panoptic segmentation'),
    Kind('solo', ('solo',), 'SOLO, SOLOv2, Decoupled SOLO'),
    Kind('yolact', ('yolact',), 'YOLACT'),
    Kind('corner', ('corner',), 'CornerNet, CentripetalNet'),
    Kind('lidar-anchors', ANCHORS, 'LiDAR: anchors', any_input=True, in_3d=True),
    Kind('lidar-centres', ('centerpoint',), 'LiDAR: centres', any_input=True, in_3d=True),
    Kind('one-camera', PICTURES_3D, 'One camera: boxes in 3D', in_3d=True),
    Kind('many-cameras', CAMERAS, 'Several cameras: boxes in 3D', any_input=True, in_3d=True),
    Kind('no-family', ('',), 'Cannot be built, or of no family'),
)


def records_of(kind: Kind, records: Sequence[Record]) -> list[Record]:
    """Return the records that belong to a kind; 'no-family' has those of families in no other kind, too."""
    if '' not in kind.families:
        return [record for record in records if record.family in kind.families]
    others = {family for other in KINDS if other is not kind for family in other.families}
    return [record for record in records if record.family not in others]
