"""Graphs of detectors with a bank of instances: tensors, tolerances, anchors and test pipeline."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import map_shapes
from mm2onnx_driving.layers.sparse_instances import steps
from mm2onnx_driving.layers.sparse_instances.steps import Pictures
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.spec.tensors import ColumnGroup, TensorSpec

# ---- anchors of instances without a file, and the test pipeline of their cameras


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


# ---- tensors and tolerances

VALUES = ColumnGroup(rtol=0.0, atol=1e-3)
ANCHORS = (
    ColumnGroup('xyz', (0, 1, 2), 'm', 0.0, 5e-3),
    ColumnGroup('log size', (3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9, 10), 'm/s', 0.0, 1e-3),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of Sparse4D."""
KEPT_PLACES, KEPT_SCORES = ColumnGroup(rtol=0.0, atol=5e-3), ColumnGroup(rtol=0.0, atol=2e-4)
"""Of anchors and confidences in a memory."""
ANCHOR_COLUMNS = 'x y z (m) log l w h sin cos (yaw) vx vy vz (m/s)'


def map_sizes(model: nn.Module) -> tuple[Tensor, Tensor]:
    cameras, height, width = model.input_sizes
    return steps.map_sizes([shape[1:] for shape in map_shapes(model, height, width)], cameras)


class InstanceNetwork(nn.Module):
    """The parts of a detector; map sizes are constants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.size = model.input_sizes
        sizes, starts = map_sizes(model)
        self.register_buffer('sizes', sizes, persistent=False)
        self.register_buffer('starts', starts, persistent=False)

    def pictures(self, rows: Tensor, lidar2img: Tensor, grid_sample: bool = False) -> Pictures:
        cameras, height, width = self.size
        image_wh = lidar2img.new_tensor([[width, height]] * cameras)
        return Pictures(rows, self.sizes, self.starts, lidar2img, image_wh, grid_sample)


def interval_spec(bank: nn.Module) -> TensorSpec:
    default, longest = f'{bank.default_time_interval:g}', f'{bank.max_time_interval:g}'
    meaning = f'seconds since the last frame, {default} if 0 or more than {longest}'
    return TensorSpec('time_interval', 'float32', (1,), meaning, single=True)


def near_spec(name: str, bank: nn.Module) -> TensorSpec:
    meaning = f'1 if the last frame is at most {bank.max_time_interval:g} s away, else 0'
    return TensorSpec(name, 'float32', (1,), meaning, single=True)
