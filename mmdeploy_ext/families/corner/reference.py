"""Detectors of corners as mmdet runs them, unpatched: what a proof compares the graph with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.parts.mmdet_reference import batch_of, metas_of
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of mmdet's `get_bboxes`, of images as they are, without a flipped one beside."""
    with torch.no_grad():
        outputs = model.bbox_head(model.extract_feat(batch_of(model, images)))
        results = model.bbox_head.get_bboxes(*outputs, metas_of(images), rescale=rescale)
    found = [(dets.cpu().numpy(), labels.cpu().numpy().astype(np.int64)) for dets, labels in results]
    return [Detections(dets[:, :4], dets[:, 4], labels) for dets, labels in found]
