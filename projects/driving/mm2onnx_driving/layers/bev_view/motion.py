"""The motion of the car between two frames for BEVFormer in PyTorch, outside of any graph.

`runtime/bev_motion.py` is the runtime's own code.
Source: fundamentalvision/BEVFormer 66b65f3, `modules/transformer.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import functional

from mm2onnx_driving.layers.bev_view.steps import LastView

CAN_BUS = 18
DX, DY, YAW_RAD, TURN_DEG = 0, 1, 16, 17
"""Entries of the motion: changes of x and y in the map, m, heading in the map, rad, its change, degrees.

The change of heading is near 360 or -360 where it crosses 0.
"""


def last_view(head: nn.Module, motion: np.ndarray, prev_bev: Tensor | None) -> LastView:
    """Return the last view (Q, 1, C) as the present frame uses it; None at the first frame."""
    transformer, cells = head.transformer, head.bev_embedding.weight
    if prev_bev is None:
        return LastView(torch.zeros_like(cells)[None], cells.new_zeros(2), cells.new_zeros(1))
    last, shift = prev_bev.transpose(0, 1), np.zeros(2)
    if transformer.rotate_prev_bev:
        last = turned(prev_bev, motion, transformer.rotate_center, (head.bev_h, head.bev_w))
    if transformer.use_shift:
        shift = shift_of(motion, np.array(head.pc_range[3:5]) - np.array(head.pc_range[:2]))
    return LastView(last, cells.new_tensor(shift), cells.new_ones(1), head.shifts_present)


def turned(view: Tensor, motion: np.ndarray, center: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return a view (Q, 1, C) turned by the motion (18,), as (1, Q, C); `center` is x, y in cells."""
    picture = view[:, 0].t().reshape(-1, *size)
    picture = functional.rotate(picture, float(motion[TURN_DEG]), center=list(center))
    return picture.flatten(1).t()[None]


def shift_of(motion: np.ndarray, extent: Sequence[float]) -> np.ndarray:
    """Return the car's way (2,), x right and y ahead, in shares of the view's sides (`extent`, m)."""
    length = math.hypot(motion[DX], motion[DY])
    direction = math.degrees(motion[YAW_RAD]) - math.degrees(math.atan2(motion[DY], motion[DX]))
    x, y = length * math.sin(math.radians(direction)), length * math.cos(math.radians(direction))
    return np.array([x / extent[0], y / extent[1]])
