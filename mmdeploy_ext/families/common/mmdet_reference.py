"""mmdet's detectors, unpatched: inputs and results that graphs are compared with."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.image_graphs import pasted_size, proposals_of
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

RegionInputs = tuple['list[torch.Tensor]', 'list[torch.Tensor]']
"""Maps of all levels (B, channels, h, w), and proposals (K, 4) of every image, xyxy, network input pixels."""


def batch_of(model: nn.Module, images: Sequence[PreparedImage]) -> torch.Tensor:
    """Return prepared images of one size (B, 3, H, W), on the model's device."""
    batch = torch.from_numpy(np.stack([image.tensor for image in images]))
    return batch.to(next(model.parameters()).device)


def given_to(
    model: nn.Module, tensors: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Return tensors of a file for the model; {} if one of the names is missing."""
    names, like = list(names), next(model.parameters())
    if any(name not in tensors for name in names):
        return {}
    return {name: torch.from_numpy(np.array(tensors[name])).to(like) for name in names}


def metas_of(images: Sequence[PreparedImage]) -> list[dict[str, Any]]:
    metas = []
    for image in images:
        (top, left), (height, width) = image.border, image.img_shape
        defaults = dict(filename='', ori_filename='', flip=False, flip_direction=None)
        sizes = dict(
            img_shape=(*image.img_shape, 3),
            scale_factor=image.scale_factor,
            ori_shape=(*image.ori_shape, 3),
            pad_shape=(*image.tensor.shape[1:], 3),
            batch_input_shape=image.tensor.shape[1:],
            border=np.asarray([top, top + height, left, left + width], np.float32),
        )
        metas.append(defaults | dict(image.collected) | sizes)
    return metas


def metas_of_images(images: Sequence[PreparedImage], rescale: bool) -> list[dict[str, Any]]:
    metas = metas_of(images)
    for meta, image in zip(metas, images, strict=True):
        size = pasted_size(image, rescale=True) if rescale else image.ori_shape
        meta.update(ori_shape=(*size, 3), flip=False)
    return metas


def tested(
    model: nn.Module,
    images: Sequence[PreparedImage],
    metas: Sequence[dict[str, Any]],
    rescale: bool,
    **data: Any,
) -> list[Any]:
    """Return the results per image of `forward` with `return_loss=False`; original pixels with `rescale`."""
    batch = batch_of(model, images).contiguous()  # mmcv's kernel of RoIAlign takes no strided input
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
        return model(
            return_loss=False,
            rescale=rescale,
            img=[batch],
            img_metas=[list(metas)],
            **{name: [value] for name, value in data.items()},
        )


@contextlib.contextmanager
def recorded(owner: Any, name: str, record: Callable[..., None]) -> Iterator[None]:
    """Inside the block `record(result, *arguments)` is called after each call of a method."""
    method = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        record(result, *args)
        return result

    with replaced_entry(vars(owner), name, watched):
        yield


def detections(
    model: nn.Module, images: Sequence[PreparedImage], rescale: bool, regions: RegionInputs | None = None
) -> list[Detections]:
    """Return the results of the detector, or of its head of regions alone; original pixels with `rescale`."""
    metas = metas_of_images(images, rescale)
    if regions is not None:
        with torch.no_grad():
            results = model.roi_head.simple_test(*regions, metas, rescale=rescale)
    elif getattr(model, 'rpn_head', None) is None:
        like = next(model.parameters())
        proposals = [torch.from_numpy(proposals_of(image)).to(like) for image in images]
        results = tested(model, images, metas, rescale, proposals=proposals)
    else:
        results = tested(model, images, metas, rescale)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:  # proposals, of one class
        return [boxes_of_classes([boxes]) for boxes in results]
    if not roi_head.with_mask:
        return [boxes_of_classes(result) for result in results]
    return [
        instances_of_classes(boxes, masks, pasted_size(image, rescale))
        for (boxes, masks), image in zip(results, images, strict=True)
    ]


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return an image's boxes, best first, of an array (n, 5) xyxy score per class."""
    rows, labels, order = _in_order(result)
    return Detections(rows[order, :4], rows[order, 4], labels[order])


def instances_of_classes(
    boxes: Sequence[np.ndarray], masks: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
) -> Instances:
    """Return an image's instances, best first; `boxes` are (n, 5) per class, `masks` (height, width) bool."""
    masks, scores = masks if isinstance(masks, tuple) else (masks, None)
    rows, labels, order = _in_order(boxes)
    flat_masks = [mask for class_masks in masks for mask in class_masks]
    image_masks = np.zeros((0, *size), bool)
    if flat_masks:
        image_masks = np.stack([flat_masks[row] for row in order])
    mask_scores = None
    if scores is not None:
        mask_scores = np.asarray([score for of_class in scores for score in of_class], np.float32)[order]
    return Instances(image_masks, rows[order, 4], labels[order], rows[order, :4], mask_scores)


def _in_order(class_boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        rows = np.concatenate([np.asarray(boxes, np.float32).reshape(-1, 5) for boxes in class_boxes])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'the test path returns {type(class_boxes).__name__} of {type(class_boxes[0]).__name__} for '
            'an image; expected an array (n, 5) for each class: export parts of this detector '
            '(docs/parts.md)'
        ) from error
    counts = [len(boxes) for boxes in class_boxes]
    labels = np.repeat(np.arange(len(class_boxes), dtype=np.int64), counts)
    return rows, labels, np.argsort(-rows[:, 4], kind='stable')
