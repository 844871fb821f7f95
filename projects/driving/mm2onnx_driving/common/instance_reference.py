"""PyTorch steppers of detectors whose bank of instances keeps poses and times."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.instances import InstanceStream
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.preparation import MultiViewRule

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
