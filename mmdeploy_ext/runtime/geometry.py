"""Poses, quaternions, corners and overlaps of boxes, and scores of logits. Needs numpy only."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

RIGID_TOLERANCE = 1e-3
"""Largest entry of R^T R - I; float32 poses and rounded calibrations stay below 1e-5."""


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """Inverse (..., 4, 4) float64 of rigid transforms, unchecked."""
    pose = np.asarray(pose, np.float64)
    inverse = np.zeros_like(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def relative_motion(last_pose: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Transform (4, 4) float64 from the last LiDAR frame to the current one; poses are LiDAR to global.

    Positions are subtracted first: float32 rotations lose nothing 700 km from the origin.
    """
    last_pose, pose = np.asarray(last_pose, np.float64), np.asarray(pose, np.float64)
    rotation = pose[:3, :3].T
    motion = np.eye(4)
    motion[:3, :3] = rotation @ last_pose[:3, :3]
    motion[:3, 3] = rotation @ (last_pose[:3, 3] - pose[:3, 3])
    return motion


def not_rigid(matrix: np.ndarray) -> str:
    """Reason why a finite (4, 4) matrix is not rigid, or ''."""
    if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        return f'its last row is {matrix[3].tolist()}, expected [0, 0, 0, 1]'
    rotation = matrix[:3, :3]
    with np.errstate(all='ignore'):
        error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if not error <= RIGID_TOLERANCE:
        return f'its rotation R has R^T R - I of up to {error:.3g}, expected at most {RIGID_TOLERANCE}'
    return 'its rotation is a reflection (determinant -1)' if np.linalg.det(rotation) < 0 else ''


def softmax(values: Any) -> Any:
    """Softmax of an array or tensor over the last axis."""
    if hasattr(values, 'softmax'):
        return values.softmax(-1)
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def sigmoid(logits: Any) -> Any:
    if hasattr(logits, 'sigmoid'):
        return logits.sigmoid()
    with np.errstate(over='ignore'):
        return (1 / (1 + np.exp(-logits))).astype(logits.dtype)


def exact_sigmoid(logits: np.ndarray) -> np.ndarray:
    """Sigmoid in float64, rounded to float32; float32's exp overflows for logits below -88."""
    return sigmoid(np.asarray(logits, np.float64)).astype(np.float32)


def ious(xp: ModuleType, rows: Any, columns: Any) -> Any:
    """IoU (..., n, m) of boxes (..., n, 4) and (..., m, 4) xyxy; unions are at least 1e-6."""
    rows, columns = rows[..., :, None, :], columns[..., None, :, :]
    sides = xp.minimum(rows[..., 2:], columns[..., 2:]) - xp.maximum(rows[..., :2], columns[..., :2])
    overlap = sides.clip(min=0)[..., 0] * sides.clip(min=0)[..., 1]
    first, second = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (rows, columns))
    return overlap / (first + second - overlap).clip(min=1e-6)


def rotation_of(quaternion: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a quaternion w x y z of any positive length."""
    w, (x, y, z) = quaternion[0], quaternion[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * (w * cross + cross @ cross) / (quaternion @ quaternion)


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 2) float64 of boxes (n, 5), from positive x, y; one negative side: clockwise."""
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, None, 4]), np.sin(boxes[:, None, 4])
    rotated = np.stack([cos * half[..., 0] - sin * half[..., 1], sin * half[..., 0] + cos * half[..., 1]], -1)
    return boxes[:, None, :2] + rotated


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (n, 8, 3) of boxes (n, 9): four below, then four above.

    Boxes: x, y, z of the bottom's middle, three sizes, yaw, velocity x, y; z up. Yaw in radians from x to y,
    along the first size. Four corners: front left, front right, rear right, rear left.
    """
    boxes = np.asarray(boxes, np.float64)
    flat = bev_corners(boxes[:, [0, 1, 3, 4, 6]])[:, [0, 3, 2, 1]]
    heights = np.repeat([boxes[:, 2], boxes[:, 2] + boxes[:, 5]], 4, axis=0).T
    return np.concatenate([np.tile(flat, (1, 2, 1)), heights[..., None]], -1)
