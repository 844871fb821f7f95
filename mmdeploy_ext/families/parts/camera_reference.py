"""Detectors of cameras in PyTorch as steppers: what those with queries share."""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from mmdeploy_ext.families.parts.samples import detections_in_1x
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, StepResult


class CameraReference(abc.ABC):
    """The test path of the user's detector or of ours, unpatched; subclasses keep its memory.

    Attributes:
        model: the detector.
        head: gives the raw outputs.
        device: of the weights.
        convention: of the boxes that the model was trained with, see `box_conventions`; '' for that of
            mmdet3d 1.x in all models of a family.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep a detector, which is in evaluation mode, and empty its memory."""
        self.model, self.head = model, model.pts_bbox_head
        self.device = next(model.parameters()).device
        self.convention: str = getattr(model, 'box_convention', '')
        self.reset()

    @abc.abstractmethod
    def reset(self) -> None:
        """Empty the memory."""

    @abc.abstractmethod
    def step(self, frame: Frame) -> StepResult:
        """Run one prepared frame, keep the memory for the next; return tensors by name, and the boxes."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the verdict: whose boxes the results are."""
        if not self.convention:
            return []
        return [f'trained with boxes of mmdet3d {self.convention}; results are compared as boxes of 1.x']

    def detections(self, result: Mapping[str, Any]) -> Detections3D:
        """Return the detector's result of one sample as boxes of mmdet3d 1.x, best first.

        `result` is its `pts_bbox`: `boxes_3d`, `scores_3d` and `labels_3d`.
        """
        return detections_in_1x(result, self.convention)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes, best first, that the head's own `get_bboxes` decodes from its outputs.

        `outputs` are name -> array (L, 1, Q, columns) of the L decoder layers and Q queries of one sample.
        """
        tensors = {name: torch.from_numpy(np.array(value, order='C')) for name, value in outputs.items()}
        meta = dict(box_type_3d=LiDARInstance3DBoxes)
        with torch.no_grad():
            ((boxes, scores, labels),) = self.head.get_bboxes(tensors, [meta])
        return self.detections(dict(boxes_3d=boxes, scores_3d=scores, labels_3d=labels))
