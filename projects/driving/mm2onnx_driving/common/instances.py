"""Graphs of detectors with a bank of instances: tensors, tolerances, anchors and test pipeline."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import map_shapes
from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.instances import InstanceStream
from mm2onnx_driving.layers import sparse_instances
from mm2onnx_driving.layers.sparse_instances import Pictures
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import ColumnGroup, TensorSpec

# PyTorch steppers of detectors whose bank of instances keeps poses and times.


GAPS_S = (0.4, 1.9999, 2.0, 2.0001, -3.5, 0.0, -0.5)
"""Seconds between frames: around the published `max_time_interval` of 2 s, zero, and back in time."""


class InstanceReference(CameraReference):
    reads = InstanceStream.reads

    @property
    def bank(self) -> nn.Module:
        """The bank of boxes."""
        return self.head.instance_bank

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, GAPS_S)

    def was_reset(self, is_first: bool) -> bool:
        return is_first or not bool(self.bank.mask[0])

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        height, width = frame.images.shape[2:]
        return dict(
            self.moment(frame.ego_pose, frame.timestamp_s),
            img=self.tensor(frame.images)[None],
            projection_mat=self.tensor(frame.lidar2img)[None],
            image_wh=self.tensor([[[width, height]] * len(frame.images)]),
        )

    def moment(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, Any]:
        pose = np.array(ego_pose, np.float64)
        time = torch.tensor([timestamp_s], dtype=torch.float64, device=self.device)
        return dict(timestamp=time, img_metas=[dict(T_global=pose, T_global_inv=np.linalg.inv(pose))])


def first_refinement(head: nn.Module) -> nn.Module:
    """Return the layer after which the instances of the last frame come in."""
    pairs = zip(head.operation_order, head.layers, strict=True)
    refinements = [layer for kind, layer in pairs if kind == 'refine']
    return refinements[head.num_single_frame_decoder - 1]


def first_scores(bank: nn.Module, logits: Tensor | None) -> np.ndarray:
    """Return (1, A) float64 scores that order the new instances; NaN for the kept ones.

    `logits` (1, A, K) come from the first refinement; None at a first frame.
    """
    scores, kept = np.full((1, bank.num_anchor), np.nan), bank.num_temp_instances
    if logits is not None:
        best = array(logits.max(-1).values.double().sigmoid())[0]
        scores[0, kept:] = -np.sort(-best)[: len(best) - kept]
    return scores


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
    return sparse_instances.map_sizes([shape[1:] for shape in map_shapes(model, height, width)], cameras)


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
