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
        families: families of its configs; '' stands for configs that no family takes.
        title: English name.
        tasks: tasks of its configs, see `Record.task`; () for all.
        any_input: whether there is one file that takes any input, and none of a fixed size.
        in_3d: whether results are boxes in 3D, which differ by metres and not by IoU.
    """

    page: str
    families: tuple[str, ...]
    title: str
    tasks: tuple[str, ...] = ()
    any_input: bool = False
    in_3d: bool = False


ANCHORS = 'anchor3d', 'mvxnet'
CAMERAS = 'bevformer', 'petr', 'petrv2', 'streampetr', 'sparse4d', 'bevfusion_det'
PICTURES_3D = 'monocular', 'smoke', 'imvoxelnet'
KINDS = (
    Kind('one-stage', ('dense',), 'One-stage detectors'),
    Kind('two-stage', ('two_stage',), 'Two-stage detectors: boxes', ('bbox2d',)),
    Kind('two-stage-masks', ('two_stage',), 'Two-stage detectors: masks', ('boxed_mask',)),
    Kind('queries', ('query',), 'Detectors of queries: boxes and masks', ('bbox2d', 'mask', 'boxed_mask')),
    Kind('panoptic', ('two_stage', 'query'), 'Panoptic segmentation', ('panoptic',)),
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
        of_families = [record for record in records if record.family in kind.families]
        return [record for record in of_families if not kind.tasks or record.task in kind.tasks]
    others = {family for other in KINDS if other is not kind for family in other.families}
    return [record for record in records if record.family not in others]
