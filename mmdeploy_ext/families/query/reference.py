"""Detectors of queries as mmdet runs them, unpatched: what a proof compares the graphs with.

The images of one call are prepared to one size, except those for `regions`, which run one by one.

Glossary: B batch, H, W network input in pixels, h, w size of the masks that the network gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.parts import mmdet_reference
from mmdeploy_ext.families.parts.mmdet_reference import (
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
    """Return `logits` (B, Q, C + 1) and `mask_logits` (B, Q, h, w) after the last layer of mmdet's head.

    Q is the number of queries, C of classes. `feeds` hold `input` (B, 3, H, W), and may hold `img_shape`
    (B, 2), height and width of the images before padding, which are positive here. `form` is not used.
    """
    image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
    batch, _, *size = image.shape
    shapes = feeds.get('img_shape', np.full((batch, 2), size))
    metas = [dict(batch_input_shape=tuple(size), img_shape=(*map(int, shape), 3)) for shape in shapes]
    with torch.no_grad():
        outputs = model.panoptic_head(model.extract_feat(image), metas)
    return {name: layers[-1].cpu().numpy() for name, layers in zip(masks.NAMES, outputs, strict=True)}


def segments(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Segments]:
    """Return the segments of the detector's own test path, at the original size whatever `rescale` is."""
    results = tested(model, images, metas_of(images), rescale=True)
    classes = int(model.panoptic_fusion_head.num_classes)
    return [Segments.of_map(result['pan_results'], classes) for result in results]


def instances(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
    """Return the instances of the detector's own test path, at the original size whatever `rescale` is.

    An empty mask has score 0, and is no result.
    """
    image_instances = []
    for result, image in zip(tested(model, images, metas_of(images), rescale=True), images, strict=True):
        of_classes = result['ins_results'] if isinstance(result, dict) else result  # beside a panoptic map
        of_image = instances_of_classes(*of_classes, tuple(image.ori_shape))
        rows = of_image.scores > 0
        image_instances.append(Instances(of_image.masks[rows], of_image.scores[rows], of_image.labels[rows]))
    return image_instances


def regions(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections | Instances]:
    """Return the results of the detector's own test path, of one image at a time; of QueryInst with masks.

    For all images of a batch mmdet takes the masks of those queries that are the best of the last image.
    """
    results = (mmdet_reference.detections(model, [image], rescale) for image in images)
    return [of_image for (of_image,) in results]
