"""Two-stage detectors as mmrotate runs them, unpatched: what a proof compares the graphs with."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.reference import rotated_detections
from mm2onnx_mmrotate.two_stage.heads import version_of
from mmdeploy_ext.families.parts.mmdet_reference import batch_of, metas_of
from mmdeploy_ext.preprocess.pictures import PreparedImage


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
    """Return the results of the detector's own test path, per image, best first.

    `images` are network inputs of one size. Boxes are in pixels of the originals with `rescale`. Without it
    the ratios are 1, so that boxes are in pixels of the network input: mmrotate's
    `GVBBoxHead` fails if it does not divide by any.
    """
    if not rescale:
        ones = np.ones(4, np.float32)
        images = [dataclasses.replace(image, scale_factor=ones) for image in images]
    return rotated_detections(model, images, True, version_of(model))


def proposals_alone(model: nn.Module, images: Sequence[PreparedImage]) -> list[RotatedDetections]:
    """Return the proposals of mmrotate's head for each image, a network input, in pixels of that."""
    with torch.no_grad():
        maps = model.extract_feat(batch_of(model, images).contiguous())
        proposals = model.rpn_head.simple_test_rpn(maps, metas_of(images))
    return rows_of_proposals(proposals, model.rpn_head.version)


def rows_of_proposals(proposals: Sequence[torch.Tensor], version: str) -> list[RotatedDetections]:
    """Return proposals with scores (K, 5 or 6) of every image as boxes of one class and angle version."""
    return [boxes_of_rows(rows.cpu().numpy(), version) for rows in proposals]


def boxes_of_rows(rows: np.ndarray, version: str = 'le90') -> RotatedDetections:
    """Return proposals with scores (K, 5 or 6) of an image as boxes of one class; upright: angle 0.

    A comparison reads the angle version of the reference alone.
    """
    boxes = rows[:, :-1]
    if boxes.shape[1] == 4:
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        boxes = np.concatenate([centres, sides, np.zeros_like(sides[:, :1])], 1)
    return RotatedDetections(boxes, rows[:, -1], np.zeros(len(rows), np.int64), version)
