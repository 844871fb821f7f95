"""The temporal memory: rows of past detections, and the rigid motion between the frames they are kept in.

One copy of the mathematics serves two ways of keeping the state between frames. In both, the rows stand in
the current LiDAR frame while a frame is computed:

* global (the published model): `pre_update(memory, ego_pose_inv, timestamp)`, the frame, `push`,
  `move(memory, ego_pose, -timestamp)`;
* local (the deploy contract): `pre_update(memory, ego_motion, delta_t)`, the frame, `push`. The state stays
  in the LiDAR frame of the last frame, and its times are ages, so that no number grows with the drive.

Source: exiawsh/StreamPETR 95f6470, streampetr_head.py `pre_update_memory` and `post_update_memory`; differs
in: stale rows are deselected instead of multiplied by zero, so that NaN in them cannot survive a reset.

Shapes: B batch, n rows, C channels, P pseudo points.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Rows of past detections, the newest first.

    Attributes:
        embedding: (B, n, C) decoder outputs.
        reference_point: (B, n, 3) box centres in m, in the frame that the state is kept in.
        timestamp: (B, n, 1) s; inside a frame and in the local state the age, in the global state the
            absolute time of the row's origin with a minus sign.
        egopose: (B, n, 4, 4) from the LiDAR frame of the row's origin to the frame that the state is kept in.
        velo: (B, n, 2) m/s in the LiDAR frame of the row's origin; never moved.
    """

    embedding: Tensor
    reference_point: Tensor
    timestamp: Tensor
    egopose: Tensor
    velo: Tensor


def empty(
    batch: int,
    num_rows: int,
    channels: int,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """Return a state of zeros, with which a stream starts; its times are float64."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, num_rows, *shape, device=device, dtype=dtype)

    return Memory(zeros(channels), zeros(3), zeros(1).double(), zeros(4, 4), zeros(2))


def move(memory: Memory, transform: Tensor, delta_t: Tensor) -> Memory:
    """Move the rows by `transform` (B, 4, 4) and their times by `delta_t` (B,) in s.

    The time is added in the wider of the two dtypes: absolute times need float64.
    """
    rotation, translation = transform[:, :3, :3], transform[:, None, :3, 3]
    return memory._replace(
        reference_point=memory.reference_point @ rotation.transpose(1, 2) + translation,
        timestamp=memory.timestamp + delta_t.view(-1, 1, 1),
        egopose=transform.unsqueeze(1) @ memory.egopose,
    )


def pre_update(
    memory: Memory,
    transform: Tensor,
    delta_t: Tensor,
    prev_exists: Tensor,
    pseudo_reference_points: Tensor | None,
    memory_len: int,
) -> Memory:
    """Bring the state into the current LiDAR frame and cut it to the `memory_len` rows that a frame uses.

    `transform` (B, 4, 4) is from the frame that the state is kept in to the current LiDAR frame; `delta_t`
    (B,) s makes the state's times ages at the current frame. If `prev_exists` (B,) is 0, a new scene starts
    with a fresh memory, whatever the state was: P rows with the pseudo points (P, 3) m in the current LiDAR
    frame (None where no rows are propagated) and identity poses, and zeros. Those rows are never masked in
    the attention: the weights were trained with them.
    """
    moved = move(Memory(*(rows[:, :memory_len] for rows in memory)), transform, delta_t)
    fresh = _fresh(moved, pseudo_reference_points)
    keep = prev_exists > 0
    pairs = zip(moved, fresh, strict=True)
    return Memory(*(torch.where(keep.view([-1] + [1] * (old.dim() - 1)), old, new) for old, new in pairs))


def push(memory: Memory, new: Memory) -> Memory:
    """Put the rows of `new` before those of `memory`, both in one frame; times keep `memory`'s dtype."""
    new = new._replace(timestamp=new.timestamp.to(memory.timestamp.dtype))
    return Memory(*(torch.cat(rows, dim=1) for rows in zip(new, memory, strict=True)))


def _fresh(like: Memory, pseudo_reference_points: Tensor | None) -> Memory:
    """Return the memory that a scene starts with, in shapes that broadcast to those of `like`."""
    zero = Memory(*(torch.zeros_like(rows[:1]) for rows in like))
    if pseudo_reference_points is None:
        return zero
    num_pseudo = pseudo_reference_points.shape[0]
    points = pseudo_reference_points.to(zero.reference_point.dtype).unsqueeze(0)
    poses = torch.eye(4, dtype=zero.egopose.dtype, device=zero.egopose.device).repeat(1, num_pseudo, 1, 1)
    return zero._replace(
        reference_point=torch.cat([points, zero.reference_point[:, num_pseudo:]], dim=1),
        egopose=torch.cat([poses, zero.egopose[:, num_pseudo:]], dim=1),
    )
