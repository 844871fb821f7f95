"""Overlaps of rotated boxes for KITTI's evaluator without a GPU; mmdet3d only has a CUDA kernel."""

import numpy as np

ROWS = 64
"""Boxes of the first list per step."""
OF_UNION, OF_FIRST, OF_SECOND = -1, 0, 1
"""Values of `criterion`."""


def overlaps(
    boxes: np.ndarray, query_boxes: np.ndarray, criterion: int = OF_UNION, device_id: int = 0
) -> np.ndarray:
    """Overlap (N, K) of boxes, float32, or float64 for float64 and large integers; 0 without an area.

    Args:
        boxes: (N, 5) x, y of the centre, sizes along x and y, angle in radians from x towards -y.
        query_boxes: (K, 5) likewise.
        criterion: divide the common area by the union (-1), the first (0) or second box (1), or not (2).
        device_id: unused, as in mmdet3d.
    """
    from mmdeploy_ext.runtime.bird_eye import intersection_areas
    from mmdeploy_ext.runtime.geometry import bev_corners

    sides = [np.asarray(side, np.float64) * (1, 1, 1, 1, -1) for side in (boxes, query_boxes)]
    corners = [bev_corners(side) for side in sides]
    areas = [side[:, 2] * side[:, 3] for side in sides]
    shared = np.zeros((len(boxes), len(query_boxes)))
    for start in range(0, len(boxes), ROWS):
        rows, columns = np.indices(shared[start : start + ROWS].shape).reshape(2, -1)
        common = intersection_areas(corners[0][start + rows], corners[1][columns])
        shared[start + rows, columns] = common
    union = areas[0][:, None] + areas[1][None] - shared
    divisors = {OF_UNION: union, OF_FIRST: areas[0][:, None], OF_SECOND: areas[1][None]}
    divisor = np.broadcast_to(divisors.get(criterion, np.ones(1)), shared.shape)
    shares = np.divide(shared, divisor, out=np.zeros_like(shared), where=divisor > 0)
    return shares.astype(np.result_type(boxes, np.float32))
