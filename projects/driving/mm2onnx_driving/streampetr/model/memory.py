"""The temporal memory: rows of past detections, and rigid motion between their frames.

While a frame is computed, rows are in the present LiDAR frame. Between frames the state is kept in two ways:
- global (the published model): `pre_update(memory, ego_pose_inv, timestamp)`, the frame, `push`,
  `move(memory, ego_pose, -timestamp)`;
- local (the deploy contract): `pre_update(memory, ego_motion, delta_t)`, the frame, `push`; the state stays
  in the LiDAR frame of the last frame, with ages for times, so that no number grows with the drive.

Source: exiawsh/StreamPETR 95f6470, streampetr_head.py `pre_update_memory` and `post_update_memory`; differs
in: stale rows are deselected instead of multiplied by zero, so that NaN in them cannot survive a reset.
Glossary: B batch, n rows, C channels, P pseudo points.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Rows of past detections, the newest first.

    Attributes:
        embedding: (B, n, C) decoder outputs.
        reference_point: (B, n, 3) box centres in m, in the state's frame.
        timestamp: (B, n, 1) s; the age, in the global state the negative absolute time of the row's origin.
        egopose: (B, n, 4, 4) from the LiDAR frame of the row's origin to the state's frame.
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
    """Return an empty state of zeros; times are float64."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, num_rows, *shape, device=device, dtype=dtype)

    return Memory(zeros(channels), zeros(3), zeros(1).double(), zeros(4, 4), zeros(2))


def move(memory: Memory, transform: Tensor, delta_t: Tensor) -> Memory:
    """Move the rows by `transform` (B, 4, 4) and their times by `delta_t` (B,) in s.

    Times are added in the wider dtype: absolute times need float64.
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
    """Bring the state into the current LiDAR frame and cut it to `memory_len` rows.

    `transform` (B, 4, 4) is from the state's frame to the current LiDAR frame; `delta_t` (B,) s makes times
    ages. Where `prev_exists` (B,) is 0 a fresh memory starts: P rows with the pseudo points (P, 3) m in the
    current LiDAR frame (or None) and identity poses, and zeros. The attention never masks fresh rows: the
    weights were trained with them.
    """
    moved = move(Memory(*(rows[:, :memory_len] for rows in memory)), transform, delta_t)
    fresh = _fresh(moved, pseudo_reference_points)
    keep = prev_exists > 0
    pairs = zip(moved, fresh, strict=True)
    return Memory(*(torch.where(keep.view([-1] + [1] * (old.dim() - 1)), old, new) for old, new in pairs))


def push(memory: Memory, new: Memory) -> Memory:
    """Put `new` rows before `memory`'s, both in one frame; times keep `memory`'s dtype."""
    new = new._replace(timestamp=new.timestamp.to(memory.timestamp.dtype))
    return Memory(*(torch.cat(rows, dim=1) for rows in zip(new, memory, strict=True)))


def _fresh(like: Memory, pseudo_reference_points: Tensor | None) -> Memory:
    """Return the memory of a scene's start, broadcastable to `like`."""
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
