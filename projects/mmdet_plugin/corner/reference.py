"""Detectors of corners as mmdet runs them, unpatched: what a proof compares the graph with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.inputs.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections
from projects.mmdet_plugin.dense.reference import metas_of


def tensors(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a form without post-processing; there is none."""
    raise NotImplementedError(form)


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of mmdet's `get_bboxes`, of images as they are, without a flipped one beside."""
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([image.tensor for image in images]))
        outputs = model.bbox_head(model.extract_feat(batch.to(next(model.parameters()).device)))
        results = model.bbox_head.get_bboxes(*outputs, metas_of(images), rescale=rescale)
    found = [(dets.cpu().numpy(), labels.cpu().numpy().astype(np.int64)) for dets, labels in results]
    return [Detections(dets[:, :4], dets[:, 4], labels) for dets, labels in found]
