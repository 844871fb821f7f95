"""Detectors of queries as mmdet runs them, unpatched: what a proof compares the graphs with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.parts import mmdet_reference
from mmdeploy_ext.families.parts.mmdet_reference import (
    boxes_of_classes,
    instances_of_classes,
    metas_of,
    tested,
)
from mmdeploy_ext.families.query import masks
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.panoptic import Segments


def mask_tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any
) -> dict[str, np.ndarray]:
    """Return the logits of classes and of masks that mmdet's head gives after its last layer."""
    image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
    batch, _, *size = image.shape
    shapes = feeds.get('img_shape', np.full((batch, 2), size))
    metas = [dict(batch_input_shape=tuple(size), img_shape=(*map(int, shape), 3)) for shape in shapes]
    with torch.no_grad():
        every = model.panoptic_head(model.extract_feat(image), metas)
    return {name: one[-1].cpu().numpy() for name, one in zip(masks.NAMES, every, strict=True)}


def segments(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Segments]:
    """Return the segments of the detector's own test path, at the original size whatever `rescale` says."""
    found, classes = _tested(model, images, True), int(model.panoptic_fusion_head.num_classes)
    return [Segments.of_map(one['pan_results'], classes) for one in found]


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path."""
    return [boxes_of_classes(one) for one in _tested(model, images, rescale)]


def instances(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
    """Return the instances of the detector's own test path, at the original size whatever `rescale` says.

    An empty mask has score 0, and is no result.
    """
    found = []
    for result, image in zip(_tested(model, images, True), images, strict=True):
        of_things = result['ins_results'] if isinstance(result, dict) else result  # beside a panoptic map
        one = instances_of_classes(*of_things, tuple(image.ori_shape))
        kept = one.scores > 0
        found.append(Instances(one.masks[kept], one.scores[kept], one.labels[kept]))
    return found


def regions(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path, of one image at a time.

    For all images of a batch mmdet takes the masks of those queries that are the best of the last image.
    """
    return [found for image in images for found in mmdet_reference.detections(model, [image], rescale)]


def _tested(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Any]:
    return tested(model, images, metas_of(images), rescale)
