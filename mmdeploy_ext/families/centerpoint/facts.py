"""Facts of CenterPoint."""

import dataclasses
from typing import Annotated, Literal

from mmdeploy_ext.contract.facts import (
    Bounds,
    Count,
    Facts,
    Limit,
    NotNegative,
    Positive,
    Range,
    optional,
)

NMS_TYPES = ('rotate', 'circle')
"""Supported values of `nms_type` of mmdet3d's `test_cfg`."""
VALUES = dict(reg=2, height=1, dim=3, rot=2, vel=2)
"""Outputs of a task besides its `heatmap` -> channels, in the order of a box's columns before decoding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterPointFacts(Facts):
    """The settings that turn the head's outputs into boxes.

    Attributes:
        num_classes: number of classes of each task; labels are numbered through all tasks.
        voxel_size: (x, y) metres.
        pc_origin: (x, y) metres of the first cell's corner.
        out_size_factor: voxels per cell of the heat map.
        max_num: (class, cell) pairs with the best scores that are decoded per task; neighbours count, too.
        score_threshold: threshold that the score of such a pair has to exceed; None or 0 keeps all.
        post_center_range: lowest x, y, z, then highest, of the boxes' middles in metres, ends included.
        norm_bbox: whether `dim` holds logarithms of the sizes.
        with_velocity: whether the head has an output `vel`.
        nms_type: 'rotate' or 'circle'.
        nms_thr: IoU in the bird's-eye view from which on the worse of two boxes is dropped ('rotate').
        nms_score_threshold: a second threshold before NMS, inclusive ('rotate').
        pre_max_size: boxes per task that go into NMS ('rotate'); None takes all.
        post_max_size: boxes per task that come out of NMS; None takes all.
        min_radius: per task the squared distance of centres, m2, up to which the worse of two boxes is
            dropped ('circle'); empty for 'rotate' if the config has none.
        post_center_limit_range: as `post_center_range`, for the boxes that NMS keeps ('rotate'); an empty one
            keeps all.
        points: 'pillars' if the backbone takes such.
    """

    num_classes: Annotated[tuple[Count, ...], Bounds(1)]
    voxel_size: tuple[Positive, Positive]
    pc_origin: tuple[float, float]
    out_size_factor: Count
    max_num: Count
    score_threshold: float | None
    post_center_range: Range
    norm_bbox: bool
    with_velocity: bool
    nms_type: Literal['rotate', 'circle']
    nms_thr: NotNegative
    nms_score_threshold: float
    pre_max_size: Limit | None
    post_max_size: Limit | None
    min_radius: tuple[NotNegative, ...]
    post_center_limit_range: Range | tuple[()]
    points: Literal['pillars'] | None = optional()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs: `reg_0`, ..., `heatmap_0`, `reg_1`, ..."""
        values = [name for name in VALUES if name != 'vel' or self.with_velocity]
        return tuple(
            f'{name}_{task}' for task in range(len(self.num_classes)) for name in (*values, 'heatmap')
        )
