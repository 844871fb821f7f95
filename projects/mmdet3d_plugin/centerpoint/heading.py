"""A pipeline step for objects whose front and back look alike."""

import math
from typing import Any

from mmdet3d.datasets.builder import PIPELINES


@PIPELINES.register_module()
class FoldHeading:
    """Take the yaw of training boxes modulo half a turn, into 0..pi.

    The boxes of the generated world have no front that a LiDAR could see. Sine and cosine of headings that
    are opposite by chance cancel out, and then the head learns no axis either; folded, it learns the axis,
    and every second heading is opposite. Velocities stay as they are.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Fold `gt_bboxes_3d` in place."""
        boxes = results['gt_bboxes_3d'].tensor
        boxes[:, 6] = boxes[:, 6] % math.pi
        return results
