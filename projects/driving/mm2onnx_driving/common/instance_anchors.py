"""Anchors of instances without a file, and the test pipeline of their cameras."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.base.config import test_dataset, test_pipeline

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
RADIUS_M, SIZE_M = 52.0, (4.0, 1.8, 1.7)
"""Radius of the disc of anchors without a file, sizes of a car."""


def camera_steps(cfg: Any) -> list[Mapping[str, Any]]:
    chosen = {name: value for name, value in test_dataset(cfg).items() if name == 'data_aug_conf'}
    resize = dict(chosen, type='ResizeCropFlipRotImage', training=False)
    return [resize if step['type'] == 'ResizeCropFlipImage' else step for step in test_pipeline(cfg)]


def spread_anchors(count: int) -> np.ndarray:
    """Return anchors (count, 11) of cars in a disc around the ego vehicle, which differ in each column."""
    index = np.arange(count)[:, None]
    turn, radius = index * GOLDEN_ANGLE, RADIUS_M * np.sqrt((index + 0.5) / count)
    spread = np.sin(index * np.arange(2, 9))  # of height, sizes and velocity
    places, sizes = [radius * np.cos(turn), radius * np.sin(turn)], np.log(SIZE_M) + 0.4 * spread[:, 1:4]
    yaws, velocities = [np.sin(3 * turn), np.cos(3 * turn)], 2.0 * spread[:, 4:]
    return np.hstack([*places, spread[:, :1], sizes, *yaws, velocities]).round(3)
