"""The ten numbers of a box that a query predicts, and the box that they mean."""

import torch
from torch import Tensor


def normalize_bbox(bboxes: Tensor, pc_range: list[float] | Tensor | None = None) -> Tensor:
    """Return the regression targets of boxes.

    Args:
        bboxes: (..., 9) or (..., 7): centre x, y, z in metres, three sizes in metres, yaw in radians and,
            where there are nine, the velocity in m/s. A size of 0 gives -inf.
        pc_range: unused; part of the signature that configs and users know.

    Returns:
        (..., 10) or (..., 8): x, y, z, log sizes in the order given, sin yaw, cos yaw, velocity.

    Source: StreamPETR `core/bbox/util.py`; nothing is scaled to the range, whatever the name says.
    """
    yaw = bboxes[..., 6:7]
    return torch.cat(
        [bboxes[..., :3], bboxes[..., 3:6].log(), yaw.sin(), yaw.cos(), bboxes[..., 7:9]], dim=-1
    )


def denormalize_bbox(normalized: Tensor, pc_range: list[float] | Tensor | None = None) -> Tensor:
    """Return the boxes (..., 9 or 7) that predictions (..., 10 or 8) mean; see `normalize_bbox`."""
    yaw = torch.atan2(normalized[..., 6:7], normalized[..., 7:8])
    return torch.cat([normalized[..., :3], normalized[..., 3:6].exp(), yaw, normalized[..., 8:10]], dim=-1)
