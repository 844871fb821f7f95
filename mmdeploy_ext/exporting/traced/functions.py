"""Functions and methods of mmcv and mmdet that a traced test path runs in another form.

Copies of mmdet in repositories have the same modules and classes, so that both are found by name.
Glossary: n boxes, m side of a mask in the frame of its box, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.exporting.substitution import configs_in
from mmdeploy_ext.exporting.traced.instance_masks import condinst_masks, rtmdet_masks
from mmdeploy_ext.exporting.traced.mode import (
    DROPPED,
    SHADOWS,
    Limit,
    Ranking,
    Tracing,
    active,
    has_tensor,
    is_traced,
    stacked,
)
from mmdeploy_ext.upstream.compat.mmcv_operators import untraced
from mmdeploy_ext.upstream.operators.nms import SOFT_NMS, efficient_nms, nms_of_sorted
from mmdeploy_ext.upstream.operators.nms import batched_nms as suppress
from mmdeploy_ext.upstream.operators.roi_align import pool_level

ALL_BOXES = 1_000_000
SOFT_ROWS = 300
LIMITS = ('nms_pre', 'max_per_img', 'max_num', 'nms_post', 'update_thr_top', 'top_k')
"""Entries of `test_cfg` that cut to at most k."""
SKIPPED = ('mmdeploy_ext.exporting', 'mmdeploy_ext.base', 'torch', 'numpy')


# the results, before they become arrays for each class
def bbox2result(bboxes: Any, labels: Any, num_classes: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return dict(dets=bboxes, labels=labels)


def box_masks(method: Any) -> Any:
    """`FCNMaskHead.get_seg_masks`: masks (n, m, m) of 0..1 in the frame of their boxes."""

    def of_labels(self: Any, mask_pred: Any, det_bboxes: Any, det_labels: Any, *_: Any, **__: Any) -> Any:
        if isinstance(mask_pred, Merged):
            mask_pred = mask_pred.masks
        elif isinstance(mask_pred, np.ndarray):
            mask_pred = torch.from_numpy(mask_pred)
        else:
            mask_pred = mask_pred.sigmoid()
        if self.class_agnostic:
            return dict(masks=mask_pred[:, 0])
        return dict(masks=mask_pred[torch.arange(mask_pred.shape[0]), det_labels])

    return of_labels


class Merged:
    """Masks of 0..1 that `merge_aug_masks` has averaged; other masks are logits."""

    def __init__(self, masks: torch.Tensor) -> None:
        self.masks = masks


def merge_aug_masks(function: Any) -> Any:
    def merge(aug_masks: Any, img_metas: Any, *args: Any, **kwargs: Any) -> Any:
        if not all(isinstance(masks, torch.Tensor) for masks in aug_masks):
            return function(aug_masks, img_metas, *args, **kwargs)
        return Merged(torch.stack(list(aug_masks)).mean(0))

    return merge


def yolact_masks(method: Any) -> Any:
    """`YOLACTProtonet.get_seg_masks`: masks (n, h, w) bool of the original size."""

    def masks(self: Any, mask_pred: Any, label_pred: Any, img_meta: Any, rescale: bool) -> Any:
        height, width = img_meta['ori_shape' if rescale else 'img_shape'][:2]
        resized = F.interpolate(mask_pred[None], (height, width), mode='bilinear', align_corners=False)
        return dict(masks=resized[0] > 0.5)

    return masks


def scored_masks(method: Any) -> Any:
    """`SingleStageInstanceSegmentor.format_results`."""

    def results(self: Any, results: Any, *_: Any) -> Any:
        named = dict(scores=results.scores, labels=results.labels, masks=results.masks)
        if 'bboxes' in results:
            named['boxes'] = results.bboxes
        return named

    return results


def segm2result(method: Any) -> Any:
    """Of heads with masks and no boxes that sort their results into arrays for each class."""

    def results(self: Any, mask_preds: Any, det_labels: Any, cls_scores: Any) -> Any:
        return dict(scores=cls_scores, labels=det_labels), dict(masks=mask_preds)

    return results


def boxed_masks(method: Any) -> Any:
    """`InstanceMaskDetector.of_classes`."""
    return lambda _, dets, labels, masks: dict(dets=dets, labels=labels, masks=masks)


# functions whose Python decides by numbers
def bbox2roi(bbox_list: Any) -> torch.Tensor:
    mode = active()
    if mode and mode.caps:
        regions = [
            boxes[:, 4] >= 0 if boxes.size(1) == 5 else boxes[:, 0] == boxes[:, 0] for boxes in bbox_list
        ]
        mode.regions = torch.cat(regions)
    rois = [
        torch.cat([boxes.new_full((boxes.size(0), 1), index), boxes[:, :4]], dim=-1)
        for index, boxes in enumerate(bbox_list)
    ]
    return torch.cat(rois, 0)


def multiclass_nms(function: Any) -> Any:
    def nms(multi_bboxes: Any, multi_scores: Any, *args: Any, **kwargs: Any) -> Any:
        regions = getattr(active(), 'regions', None)
        if regions is not None and regions.shape[0] == multi_scores.shape[0]:
            multi_scores = torch.where(regions[:, None], multi_scores, DROPPED)
        return function(multi_bboxes, multi_scores, *args, **kwargs)

    return nms


def batched_nms(function: Any) -> Any:
    def nms(boxes: Any, scores: Any, idxs: Any, nms_cfg: Any, class_agnostic: bool = False) -> Any:
        if not is_traced() or nms_cfg is None:
            return function(boxes, scores, idxs, nms_cfg, class_agnostic)
        cfg = dict(nms_cfg)
        agnostic, kind, _ = (
            cfg.pop('class_agnostic', class_agnostic),
            cfg.pop('type', 'nms'),
            cfg.pop('split_thr', 0),
        )
        most = cfg.pop('max_num', -1)
        threshold = cfg.pop('iou_threshold', cfg.pop('iou_thr', 0.3))
        shifted, seen, mode = boxes, boxes, active()
        if mode and mode.caps:
            live = scores >= 0
            scores, seen = torch.where(live, scores, DROPPED), torch.where(live[:, None], boxes, 0 * DROPPED)
        if not agnostic:
            largest = torch.cat([seen.flatten(), boxes.new_zeros(1)]).max()
            shifted = boxes + (idxs.to(boxes) * (largest + 1))[:, None]
        # mmcv never suppresses a box with x2 < x1; ONNX would turn it over
        shifted = torch.cat([shifted[:, :2], torch.maximum(shifted[:, :2], shifted[:, 2:])], 1)
        if mode:
            mode.suppress(boxes, scores, labelled(idxs, scores))
        if kind in ('soft_nms', 'SoftNMSop'):
            return _soft(boxes, shifted, scores, threshold, cfg, most)
        if kind != 'nms' or cfg:
            raise ExportError(f'NMS {kind!r} with {", ".join(cfg) or "no settings"}: no traced form')
        if mode and mode.caps:
            dets, keep = _capped(mode, boxes, shifted, scores, idxs, threshold, agnostic)
            return (dets[:most], keep[:most]) if most > 0 else (dets, keep)
        keep = suppress(shifted[None], scores[None, None], threshold, ALL_BOXES)[:, 2]
        best, order = scores[keep].sort(0, descending=True)
        keep = keep[order]
        dets = torch.cat([boxes[keep], best[:, None]], 1)
        return (dets[:most], keep[:most]) if most > 0 else (dets, keep)

    return nms


def labelled(idxs: Any, scores: Any) -> Any:
    return torch.zeros_like(scores, dtype=torch.int64) if idxs is None else idxs


def _capped(
    mode: Tracing, boxes: Any, shifted: Any, scores: Any, idxs: Any, threshold: float, agnostic: bool
) -> Any:
    """Suppress the best boxes, of a constant number; a dropped one has the score `DROPPED`, last."""
    caps, name, limit = mode.caps, 'candidates', mode.caps.candidates
    if caps.proposals and mode.regions is None:
        name, limit = 'proposal_candidates', caps.proposals
    entered = (scores >= 0).sum()
    best, rows = scores.topk(min(limit, scores.shape[0]))
    if caps.plugin_classes and name == 'candidates':
        best, order = _by_plugin(boxes[rows], best, idxs[rows], threshold, agnostic, mode)
    else:
        keep = nms_of_sorted(shifted[rows][None], threshold)[0] & (best >= 0)
        if name != 'candidates' and caps.wanted > 0:
            entered = torch.where(keep.sum() < caps.wanted, entered, entered.clamp(max=limit))
        best, order = torch.where(keep, best, DROPPED).topk(best.shape[0])
    mode.entered[name] = torch.maximum(entered, mode.entered.get(name, entered))
    keep = rows[order]
    return torch.cat([boxes[keep], best[:, None]], 1), keep


def _by_plugin(
    boxes: Any, best: Any, labels: Any, threshold: float, agnostic: bool, mode: Tracing
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and places of what TensorRT's plug-in keeps; it returns copies without their places."""
    classes = torch.arange(mode.caps.plugin_classes)
    chosen = (labels[:, None] == classes) & (best >= 0)[:, None]
    scores = torch.where(chosen, best[:, None], 0 * DROPPED)
    most = min(mode.caps.results, best.shape[0])
    count, *kept = efficient_nms(boxes[None], scores[None], threshold, most, agnostic)
    kept_boxes, kept_scores, kept_labels = (one[0] for one in kept)
    same = (kept_boxes[:, None] == boxes).all(2) & (kept_scores[:, None] == best)
    same = same & (kept_labels.to(torch.int64)[:, None] == labels)
    present = torch.arange(most) < count[0]
    return torch.where(present, kept_scores, DROPPED), same.to(best).argmax(1)


def _soft(boxes: Any, shifted: Any, scores: Any, threshold: float, cfg: dict[str, Any], most: int) -> Any:
    padded = torch.cat([shifted, boxes.new_zeros(1, 4)]), torch.cat([scores, scores.new_zeros(1) - 1])
    method, sigma = cfg.get('method', 'linear'), cfg.get('sigma', 0.5)
    rows, best = SOFT_NMS[method](
        padded[0][None], padded[1][None], max(most, SOFT_ROWS), threshold, sigma, cfg.get('min_score', 1e-3)
    )
    live = best[0] > -1
    keep, left = rows[0][live], best[0][live]
    dets = torch.cat([boxes[keep], left[:, None]], -1)
    return (dets[:most], keep[:most]) if most > 0 else (dets, keep)


def ranked_nms(mode: Ranking) -> Any:
    """Return the maker of an eager `batched_nms` whose boxes and scores `mode` sees."""

    def make(function: Any) -> Any:
        def nms(boxes: Any, scores: Any, idxs: Any, nms_cfg: Any, *args: Any, **kwargs: Any) -> Any:
            boxes, scores = mode.border('nms_boxes', boxes), mode.border('nms_scores', scores)
            mode.suppressed[list(mode.found)[-2]] = boxes, scores, labelled(idxs, scores)
            for key in ('iou_threshold', 'iou_thr'):
                if mode.overlap and nms_cfg and key in nms_cfg:
                    nms_cfg = dict(nms_cfg, **{key: nms_cfg[key] + mode.overlap})

            def kept(limit: int) -> int:
                best = scores.topk(min(limit, len(scores)))[1]
                return len(function(boxes[best], scores[best], idxs[best], nms_cfg, *args, **kwargs)[1])

            proposes = not any(name.startswith('rois_') for name in mode.found)
            mode.entered.append((proposes, len(scores), kept))
            if not nms_cfg or nms_cfg.get('type', 'nms') != 'nms' or nms_cfg.get('score_threshold'):
                return function(boxes, scores, idxs, nms_cfg, *args, **kwargs)
            ranks = torch.empty_like(scores)  # mmcv sorts equal scores in any order, ONNX by their places
            ranks[scores.sort(descending=True, stable=True)[1]] = torch.arange(len(scores), 0, -1).to(scores)
            dets, keep = function(boxes, ranks, idxs, nms_cfg, *args, **kwargs)
            return torch.cat([dets[:, :-1], scores[keep, None]], 1), keep

        return nms

    return make


def ranked_rois(mode: Ranking) -> Any:
    """Return the maker of an eager `SingleRoIExtractor.forward` whose regions `mode` sees."""

    def make(method: Any) -> Any:
        def forward(self: Any, feats: Any, rois: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, feats, mode.border('rois', rois), *args, **kwargs)

        return forward

    return make


@contextlib.contextmanager
def ranked(
    model: torch.nn.Module, given: Mapping[str, torch.Tensor], overlap: float = 0.0, slack: float = 0.0
) -> Iterator[Ranking]:
    """Inside the block the eager model's rankings start from given tensors where they have the same shape."""
    mode = Ranking(given, overlap, slack)
    makers = {
        ('mmcv.ops.nms', 'batched_nms'): ranked_nms(mode),
        ('core.export.onnx_helper', 'get_k_for_topk'): get_k_for_topk,
    }
    with contextlib.ExitStack() as stack:
        for module, name, (_, value) in _found(modules_of(model), makers):
            stack.enter_context(mock.patch.object(module, name, value))
        methods = {('SingleRoIExtractor', 'forward'): ranked_rois(mode)}
        for owner, name, method in _new_methods(model, methods):
            stack.enter_context(mock.patch.object(owner, name, method))
        for config in configs_in(model):
            stack.enter_context(mock.patch.dict(config, limits_of(config)))
        yield stack.enter_context(mode)


def limits_of(config: Mapping[str, Any]) -> dict[str, Limit]:
    return {key: Limit(config[key]) for key in LIMITS if type(config.get(key)) is int and config[key] > 0}


def get_k_for_topk(function: Any) -> Any:
    """Of mmdet 2.11 to 2.17, which ranks no level with fewer candidates."""

    def least(k: Any, size: Any) -> Any:
        return SHADOWS['min'](k, size) if k > 0 else function(k, size)

    return least


def deform_conv2d(function: Any) -> Any:
    def conv(x: Any, offset: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        mode = active()
        if mode is None:
            return function(x, offset, weight, *args, **kwargs)
        if mode.depends(weight):  # TOOD: ones of a traced number of channels
            with untraced():
                example = weight.detach().clone()
            mode.record('value', 'weight', tuple(example.shape), (weight == example).all())
            weight = example
        args = [mode.number(value, 'deform_conv2d') for value in args]
        kwargs = {name: mode.number(value, name) for name, value in kwargs.items()}
        known = len(mode.conditions), len(mode.escapes)
        result = function(x, offset, weight, *args, **kwargs)
        # what the kernel reads, such as the size of the batch, is no fact of ONNX's operator
        del mode.conditions[known[0] :], mode.escapes[known[1] :]
        return result

    return conv


def deform_forward(method: Any) -> Any:
    """`DeformConv2d.forward`: mmcv pads maps that are smaller than the kernel; others by 0."""

    def forward(self: Any, x: Any, offset: Any) -> Any:
        if not is_traced():
            return method(self, x, offset)
        conv = sys.modules['mmcv.ops.deform_conv'].deform_conv2d
        sides = [
            SHADOWS['max'](kernel - x.size(axis), 0)
            for axis, kernel in zip((2, 3), self.kernel_size, strict=True)
        ]
        padded = [F.pad(value, (0, sides[1], 0, sides[0])) for value in (x, offset)]
        settings = (
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
            False,
            self.im2col_step,
        )
        out = conv(*padded, self.weight, *settings)
        return out[:, :, : out.size(2) - sides[0], : out.size(3) - sides[1]]

    return forward


def roi_forward(method: Any) -> Any:
    """`SingleRoIExtractor.forward`."""

    def forward(self: Any, feats: Any, rois: Any, roi_scale_factor: Any = None) -> Any:
        if not is_traced():
            return method(self, feats, rois, roi_scale_factor)
        if mode := active():
            mode.border('rois', rois)
        levels = torch.zeros_like(rois[:, 0]).long()
        if len(feats) > 1:
            levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        pooled = rois.new_zeros(rois.size(0), self.out_channels, *self.roi_layers[0].output_size)
        for level, (maps, layer) in enumerate(zip(feats, self.roi_layers, strict=False)):
            boxes, images, constant = rois[:, 1:], rois[:, 0].long(), bool(mode and mode.caps)
            pooled = pool_level(pooled, maps, boxes, images, levels, level, layer, constant)
        return pooled

    return forward


def refine_bboxes(method: Any) -> Any:
    """`BBoxHead.refine_bboxes` of one image without ground truth: it keeps all regions, a constant number."""

    def refine(self: Any, rois: Any, labels: Any, bbox_preds: Any, pos_is_gts: Any, img_metas: Any) -> Any:
        if not is_traced():
            return method(self, rois, labels, bbox_preds, pos_is_gts, img_metas)
        return [self.regress_by_class(rois[:, 1:], labels, bbox_preds, img_metas[0])]

    return refine


def score_voting(method: Any) -> Any:
    """PAA: mmdet loops over classes and detections."""

    def vote(self: Any, det_bboxes: Any, det_labels: Any, boxes: Any, scores: Any, score_thr: Any) -> Any:
        if not is_traced():
            return method(self, det_bboxes, det_labels, boxes, scores, score_thr)
        passing = scores > score_thr
        rows, labels = passing.nonzero(as_tuple=False).unbind(1)
        boxes, scores = boxes[rows], scores[passing]
        ranks = torch.arange(det_labels.shape[0])
        order = torch.argsort(det_labels * det_labels.shape[0] + ranks)
        det_bboxes, det_labels = det_bboxes[order], det_labels[order]
        overlaps = _overlaps(det_bboxes[:, None, :4], boxes[None])
        voters = ((overlaps > 0.01) & (det_labels[:, None] == labels[None])).to(overlaps)
        weights = torch.exp(-((1 - overlaps) ** 2) / 0.025) * scores[None] * voters
        voted = (weights @ boxes) / weights.sum(1, keepdim=True)
        return torch.cat([voted, det_bboxes[:, 4:]], 1), det_labels

    return vote


def bbox_overlaps(function: Any) -> Any:
    """Side by side: ONNX Runtime's Min and Max of pairs of points take ten times as long."""

    def overlaps(
        bboxes1: Any, bboxes2: Any, mode: str = 'iou', is_aligned: bool = False, eps: float = 1e-6
    ) -> Any:
        if not is_traced() or mode != 'iou' or is_aligned:
            return function(bboxes1, bboxes2, mode, is_aligned, eps)
        return _overlaps(bboxes1[..., :, None, :], bboxes2[..., None, :, :], eps)

    return overlaps


def _overlaps(first: torch.Tensor, second: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    sides = []
    for axis in (0, 1):
        low = torch.maximum(first[..., axis], second[..., axis])
        sides.append((torch.minimum(first[..., axis + 2], second[..., axis + 2]) - low).clamp(min=0))
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (first, second)]
    shared = sides[0] * sides[1]
    return shared / torch.clamp(areas[0] + areas[1] - shared, min=eps)


RESULT_FUNCTIONS = {('core.bbox.transforms', 'bbox2result'): lambda function: bbox2result}
RESULT_METHODS = {
    ('FCNMaskHead', 'get_seg_masks'): box_masks,
    ('InstanceMaskDetector', 'of_classes'): boxed_masks,
    ('YOLACTProtonet', 'get_seg_masks'): yolact_masks,
    ('SingleStageInstanceSegmentor', 'format_results'): scored_masks,
    ('', 'segm2result'): segm2result,
}
FUNCTIONS = {
    **RESULT_FUNCTIONS,
    ('core.bbox.iou_calculators.iou2d_calculator', 'bbox_overlaps'): bbox_overlaps,
    ('core.bbox.transforms', 'bbox2roi'): lambda function: bbox2roi,
    ('core.export.onnx_helper', 'get_k_for_topk'): get_k_for_topk,
    ('core.post_processing.merge_augs', 'merge_aug_masks'): merge_aug_masks,
    ('core.post_processing.bbox_nms', 'multiclass_nms'): multiclass_nms,
    ('mmcv.ops.nms', 'batched_nms'): batched_nms,
    ('mmcv.ops.deform_conv', 'deform_conv2d'): deform_conv2d,
}
"""End of a module's name, function -> what replaces the function."""
METHODS = {
    **RESULT_METHODS,
    ('BBoxHead', 'refine_bboxes'): refine_bboxes,
    ('CondInst', 'masks'): condinst_masks,
    ('DeformConv2d', 'forward'): deform_forward,
    ('PAAHead', 'score_voting'): score_voting,
    ('RTMDetIns', 'masks'): rtmdet_masks,
    ('SingleRoIExtractor', 'forward'): roi_forward,
}
"""Class ('': any), method -> what replaces the method."""


def numpy_array(function: Any) -> Any:
    def array(data: Any, *args: Any, **kwargs: Any) -> Any:
        return stacked(data, None) if is_traced() and has_tensor(data) else function(data, *args, **kwargs)

    return array


def from_numpy(function: Any) -> Any:
    return lambda array: array if isinstance(array, torch.Tensor) else function(array)


def packages_of(model: torch.nn.Module) -> set[str]:
    """Return the top-level packages with classes of a model, and mmdet and mmcv."""
    kinds = {kind for part in model.modules() for kind in type(part).__mro__}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith(SKIPPED)}
    return {name.partition('.')[0] for name in names} - {'builtins', 'abc', 'typing'} | {'mmdet', 'mmcv'}


def modules_of(model: torch.nn.Module) -> list[Any]:
    """Return the imported modules of the model's packages."""
    roots = packages_of(model)
    return [
        module
        for name, module in list(sys.modules.items())
        if module is not None and name.partition('.')[0] in roots and not name.startswith(SKIPPED)
    ]


@contextlib.contextmanager
def replaced(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the model's packages have `FUNCTIONS`, `METHODS`, `SHADOWS` and `Limit`s."""
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        for module, name, value in _new_entries(modules_of(model)):
            patch(module, name, value)
        for owner, name, method in _new_methods(model, METHODS):
            patch(owner, name, method)
        patch(torch, 'from_numpy', from_numpy(torch.from_numpy))
        patch(np, 'array', numpy_array(np.array))
        for config in configs_in(model):
            stack.enter_context(mock.patch.dict(config, limits_of(config)))
        yield


@contextlib.contextmanager
def named_results(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block results are tensors by name, before they become arrays for each class."""
    with contextlib.ExitStack() as stack:
        for module, name, (_, value) in _found(modules_of(model), RESULT_FUNCTIONS):
            stack.enter_context(mock.patch.object(module, name, value))
        for owner, name, method in _new_methods(model, RESULT_METHODS):
            stack.enter_context(mock.patch.object(owner, name, method))
        yield


def _new_methods(
    model: torch.nn.Module, makers: Mapping[tuple[str, str], Any]
) -> Iterator[tuple[type, str, Any]]:
    classes = {kind for part in model.modules() for kind in type(part).__mro__}
    for (kind, name), make in makers.items():
        for owner in classes:
            if (owner.__name__ == kind or not kind) and name in vars(owner):
                yield owner, name, make(vars(owner)[name])


def _new_entries(modules: list[Any]) -> Iterator[tuple[Any, str, Any]]:
    """Yield module, name and new value of functions, builtins and functions with a gradient of their own."""
    for module, name, (_, value) in _found(modules, FUNCTIONS):
        yield module, name, value
    for module in modules:
        if module.__name__.startswith('mmcv'):
            continue
        for name, value in list(vars(module).items()):
            if plain := _without_gradient(value):
                yield module, name, plain
        for name, value in SHADOWS.items():
            if name not in vars(module):
                yield module, name, value


def _found(modules: list[Any], makers: Mapping[tuple[str, str], Any]) -> Iterator[tuple[Any, str, Any]]:
    """Yield module, name, and (function, new function) wherever a module holds a function of `makers`."""
    values = {}
    for (end, name), make in makers.items():
        for module in modules:
            if f'.{module.__name__}'.endswith(f'.{end}') and name in vars(module):
                function = vars(module)[name]
                values[id(function)] = function, make(function)
    for module in modules:
        for name, value in list(vars(module).items()):
            if id(value) in values:
                yield module, name, values[id(value)]


def _without_gradient(value: Any) -> Any:
    """Return the forward of a function with a gradient of its own, which is plain PyTorch, or None."""
    kind = getattr(value, '__self__', None)
    is_function = isinstance(kind, type) and issubclass(kind, torch.autograd.Function)
    if not is_function or getattr(value, '__name__', '') != 'apply' or 'symbolic' in vars(kind):
        return None
    return functools.partial(kind.forward, mock.MagicMock())
