"""Two-stage detectors as mmdet runs them, unpatched: what a proof compares the graphs with."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.runtime.detections import BoxedInstances, Detections, ScoredMasks
from projects.mmdet_plugin.two_stage.kinds import PANOPTIC
from projects.mmdet_plugin.two_stage.proposals import needed, thresholds
from projects.mmdet_plugin.two_stage.samples import pasted_size, proposals_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.inputs.pictures import PreparedImage


def tensors(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a form without post-processing; there is none yet."""
    raise NotImplementedError(form)


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of mmdet's `simple_test`."""
    metas = [
        dict(
            img_shape=(*image.img_shape, 3),
            scale_factor=image.scale_factor,
            ori_shape=(*(pasted_size(image, True) if rescale else image.ori_shape), 3),
            pad_shape=(*image.tensor.shape[1:], 3),
            flip=False,
        )
        for image in images
    ]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack([image.tensor for image in images])).contiguous()  # see `roi_align`
        batch = batch.to(next(model.parameters()).device)
        given = {}
        if getattr(model, 'rpn_head', None) is None:
            given['proposals'] = [torch.from_numpy(proposals_of(image)).to(batch) for image in images]
        if isinstance(model, PANOPTIC):
            return fused_instances(
                model, batch, metas, [pasted_size(one, rescale) for one in images], rescale
            )
        results = model.simple_test(batch, metas, rescale=rescale, **given)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        return [boxes_of_classes([one]) for one in results]
    if not roi_head.with_mask:
        return [boxes_of_classes(one) for one in results]
    return [
        instances_of_classes(*one, pasted_size(image, rescale))
        for one, image in zip(results, images, strict=True)
    ]


EDGE = 1e-4
"""Overlaps this close to the threshold, and sides (pixels) this close to the smallest, are a tie."""


def candidate_bounds(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    slack: float,
    max_proposals: int = 0,
    max_candidates: int = 0,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what the outputs that count candidates have to be; see `ImageFamily`."""
    found = {}
    with torch.no_grad():
        maps, metas = maps_of(model, feeds), metas_of(feeds)
        if max_proposals:
            found['proposal_candidates'] = _needed_proposals(model, maps, metas, max_proposals)
        if max_candidates:
            proposals = model.rpn_head.simple_test_rpn(maps, metas)
            thr = model.roi_head.test_cfg.score_thr
            found['candidates'] = tuple(
                _pairs_above(model.roi_head, maps, proposals, metas, thr + step) for step in (slack, -slack)
            )
    return found


def maps_of(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Return the maps of all levels that the unpatched model gives."""
    image = torch.from_numpy(feeds['input']).contiguous().to(next(model.parameters()).device)
    return model.extract_feat(image)


def metas_of(feeds: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return what mmdet wants to know about every image, by what a graph is fed."""
    batch, _, *size = feeds['input'].shape
    shapes = feeds.get('img_shape', np.full((batch, 2), size))
    scales = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    return [
        dict(
            img_shape=(*map(int, shape), 3),
            ori_shape=(*map(int, shape), 3),
            scale_factor=scale,
            pad_shape=(*size, 3),
            flip=False,
        )
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def _needed_proposals(
    model: nn.Module, maps: Sequence[torch.Tensor], metas: Sequence[dict[str, Any]], cap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest number of boxes (B,) that the suppression has to look at."""
    head, config = model.rpn_head, thresholds(model.rpn_head)
    outputs = head(maps)

    def counts(iou_threshold: float, step: float, most: int) -> torch.Tensor:
        cfg = copy.deepcopy(head.test_cfg)
        cfg.update(nms=dict(cfg.nms, iou_threshold=iou_threshold), max_per_img=most)
        if cfg.get('min_bbox_size', -1) > 0:
            cfg.min_bbox_size += step
        return torch.tensor([len(one) for one in head.get_bboxes(*outputs, img_metas=metas, cfg=cfg)])

    found = []
    for step in (-EDGE, EDGE):
        every = counts(1.0, step, sum(one[0].numel() for one in outputs[0]))
        for edge in (-EDGE, 0.0, EDGE):
            rows = counts(config.iou_threshold + edge, step, head.test_cfg.max_per_img)
            labels = torch.where(torch.arange(max(int(rows.max()), 1)) < rows[:, None], 0, -1)
            found.append(needed(every, labels, cap, config.max_per_img).numpy())
    return np.min(found, 0), np.max(found, 0)


def _pairs_above(
    roi_head: nn.Module,
    maps: Sequence[torch.Tensor],
    proposals: Sequence[torch.Tensor],
    metas: Sequence[dict[str, Any]],
    score_thr: float,
) -> np.ndarray:
    """Return how many (region, class) pairs of every image (B,) are over a threshold."""
    with boxes_alone(roi_head, score_thr=score_thr, nms=dict(type='nms', iou_threshold=1.0)):
        results = roi_head.simple_test(maps, proposals, metas, rescale=True)
    return np.asarray([sum(map(len, one)) for one in results])


@contextlib.contextmanager
def boxes_alone(roi_head: nn.Module, **test_cfg: Any) -> Iterator[None]:
    """Inside the block a head of regions gives no masks, all boxes, and has other entries of `test_cfg`."""
    masks, own = getattr(roi_head, 'mask_head', None), roi_head.test_cfg
    roi_head.mask_head, roi_head.test_cfg = None, copy.deepcopy(own)
    roi_head.test_cfg.update(max_per_img=10**9, **test_cfg)
    try:
        yield
    finally:
        roi_head.mask_head, roi_head.test_cfg = masks, own


def fused_instances(
    model: nn.Module,
    batch: torch.Tensor,
    metas: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    rescale: bool,
) -> list[BoxedInstances]:
    """Return the instances that a panoptic detector's own `simple_test` fuses with its semantic map."""
    head, kept = model.panoptic_fusion_head, []
    fuse, threshold = head.simple_test, model.test_cfg.panoptic.mask_thr_binary

    def keep(dets: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        kept.append((dets.numpy(), labels.numpy(), (masks >= threshold).numpy()))
        return torch.zeros(())

    head.simple_test = keep
    try:
        model.simple_test(batch, metas, rescale=rescale)
    finally:
        head.simple_test = fuse
    return [
        BoxedInstances(masks[:, :height, :width].reshape(-1, height, width), *_columns(dets, labels))
        for (dets, labels, masks), (height, width) in zip(kept, sizes, strict=True)
    ]


def _columns(dets: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return dets[:, 4], labels, dets[:, :4]


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return the boxes of an image of all classes, (n, 5) each, in descending score order."""
    rows, labels, order = _in_order(result)
    return Detections(rows[order, :4], rows[order, 4], labels[order])


def instances_of_classes(
    boxes: Sequence[np.ndarray], masks: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
) -> BoxedInstances:
    """Return the instances of an image of all classes, masks of `size`, in descending score order.

    With heads that judge masks, `masks` is a pair: masks and their scores, of all classes.
    """
    masks, scores = masks if isinstance(masks, tuple) else (masks, None)
    rows, labels, order = _in_order(boxes)
    every = [mask for one in masks for mask in one]
    whole = np.stack([every[row] for row in order]) if every else np.zeros((0, *size), bool)
    found = BoxedInstances(whole, rows[order, 4], labels[order], rows[order, :4])
    if scores is None:
        return found
    judged = np.asarray([score for one in scores for score in one], np.float32)
    return ScoredMasks(*(getattr(found, field.name) for field in dataclasses.fields(found)), judged[order])


def _in_order(result: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes with scores (n, 5) and labels (n,) of all classes, and their order by score."""
    rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, 5) for one in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(one) for one in result])
    return rows, labels, np.argsort(-rows[:, 4], kind='stable')
