"""How the points of a sample were moved, as the one matrix that cameras need; headings without a front."""

import math
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets.builder import PIPELINES as PIPELINES_3D

from mmdeploy_ext.models.catalogue import offered


@offered(PIPELINES)
class LidarAugMatrix:
    """Write `lidar_aug_matrix` (4, 4): LiDAR to what mmdet3d's steps before this one made of its points.

    These are GlobalRotScaleTrans and RandomFlip3D, in any order; they note what they did.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Compose the notes in the order of the steps."""
        matrix = np.eye(4)
        for step in results.get('transformation_3d_flow', ()):
            change = np.eye(4)
            if step == 'R':  # points are rows there
                change[:3, :3] = np.asarray(results['pcd_rotation'], np.float64).T
            elif step == 'S':
                change[:3, :3] *= results['pcd_scale_factor']
            elif step == 'T':
                change[:3, 3] = results['pcd_trans']
            elif step == 'HF':
                change[1, 1] = -1
            elif step == 'VF':
                change[0, 0] = -1
            matrix = change @ matrix
        results['lidar_aug_matrix'] = matrix.astype(np.float32)
        return results


@offered(PIPELINES_3D)
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
