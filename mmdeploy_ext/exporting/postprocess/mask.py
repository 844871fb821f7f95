"""Post-processing of SOLO-like heads, equal to mmdet 2.28.2's `get_results`; sizes and batch stay dynamic.

Glossary: B batch, C classes, S cells of all levels, level by level, row by row, m chosen cells, k candidates
of the matrix NMS, n results, h, w size of the results. A score of `NO_CANDIDATE` (-1) marks padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.mask_resize import resize_and_threshold
from mmdeploy_ext.exporting.postprocess.soft_masks import SoftMasks
from mmdeploy_ext.exporting.postprocess.suppression import capped, limit, number
from mmdeploy_ext.spec.facts import KERNELS, MaskConfig
from mmdeploy_ext.upstream.operators.nms import NO_CANDIDATE

ROUNDING = 1e-5
"""By how much float32 sums may push a maskness over 1."""
LIMITS = ('nms_pre', 'max_per_img')
"""Settings without limit at 0 and below in mmdet; -1 in `MaskConfig`."""


def mask_config(test_cfg: Mapping[str, Any]) -> MaskConfig:
    """Return the settings of an mmdet `test_cfg` with all names of `MaskConfig`."""
    names = [field.name for field in dataclasses.fields(MaskConfig)]
    missing = [name for name in names if test_cfg.get(name) is None]
    if missing:
        raise ConfigError(f'test_cfg: {", ".join(missing)} missing; expected {", ".join(names)}')
    values = {name: number(name, test_cfg[name], float) for name in names if name not in (*LIMITS, 'kernel')}
    limits = {name: number(name, test_cfg[name], int) for name in LIMITS}
    limits = {name: value if value > 0 else -1 for name, value in limits.items()}
    if test_cfg['kernel'] not in KERNELS:
        raise ConfigError(f'test_cfg.kernel={test_cfg["kernel"]!r}: expected one of {", ".join(KERNELS)}')
    for name in ('score_thr', 'mask_thr'):
        if not 0 <= values[name] < 1:
            raise ConfigError(f'test_cfg.{name}={values[name]}: expected 0 or more, below 1')
    return MaskConfig(kernel=test_cfg['kernel'], **values, **limits)


class MaskPostprocess(nn.Module):
    """Instances of class scores and soft masks."""

    def __init__(
        self, config: MaskConfig, num_grids: list[int], strides: list[int], mask_stride: int, cap: int = 0
    ) -> None:
        """Keep the thresholds as constants of the graph.

        Args:
            config: settings of the head.
            num_grids: cells along a side of each level.
            strides: per level, least pixels of the soft masks in an instance, as in mmdet.
            mask_stride: pixels of the input per pixel of the soft masks.
            cap: most candidates, the best by class score, S * C at most; 0: all. With a cap every size but h
                and w is constant.
        """
        super().__init__()
        self.config = config
        self.mask_stride = mask_stride
        self.cap = cap
        cells = [stride for grid, stride in zip(num_grids, strides, strict=True) for _ in range(grid**2)]
        self.register_buffer('strides', torch.tensor(cells, dtype=torch.float32), persistent=False)

    def forward(
        self, cate_pred: Tensor, soft: SoftMasks, img_shape: Tensor, ori_shape: Tensor
    ) -> tuple[Tensor, ...]:
        """Find the instances: matrix NMS lowers scores by better masks that overlap.

        Args:
            cate_pred: (B, S, C) float32 class scores 0..1 after points NMS.
            soft: the soft masks of all cells, computed on request.
            img_shape: (B or 1, 2) float32 height and width before padding, pixels of the input; 0: the whole
                input.
            ori_shape: (2,) int64 height and width (h, w) of the results; 0: the padded input's.

        Returns:
            masks (B, n, h, w) bool, scores (B, n) float32 descending and labels (B, n) int64; n is the
                largest number of results in the batch, may be 0 (with a cap: the smallest of the cap,
                `nms_pre` and `max_per_img`). Padding: empty masks, score 0, label -1. With a cap also (B,)
                int64, the number of candidates above `score_thr`.
        """
        num_classes = cate_pred.shape[2]
        scores, pairs, areas = (self._capped if self.cap else self._all)(cate_pred, soft)
        cells = torch.div(pairs, num_classes, rounding_mode='floor')
        labels = pairs - cells * num_classes
        overlaps = soft.overlaps(cells, self.config.mask_thr, integer=not self.cap)
        decayed = scores * matrix_decay(scores, labels, areas, overlaps, self.config)
        keep = scores > NO_CANDIDATE
        if self.config.filter_thr > 0:
            keep = keep & (decayed >= self.config.filter_thr)
        elif self.config.kernel == 'linear':
            keep = keep & (decayed >= 0)  # negative where mmdet has the score NaN, see `matrix_decay`
        scores = torch.where(keep, decayed, torch.full_like(scores, NO_CANDIDATE))
        scores, cells, labels = self._best(scores, cells, labels)
        present = scores > NO_CANDIDATE
        maps = soft.maps(cells) * present[..., None, None].to(scores.dtype)
        masks = resize_and_threshold(maps, img_shape, ori_shape, self.mask_stride, self.config.mask_thr)
        results = (
            masks,
            torch.where(present, scores, torch.zeros_like(scores)),
            torch.where(present, labels, torch.full_like(labels, -1)),
        )
        if self.cap:
            return (*results, (cate_pred > self.config.score_thr).flatten(1).sum(1))
        # ONNX Runtime multiplies no stack of no matrices, so there is one row up to here
        count = present.sum(dim=1).max()
        return tuple(result[:, :count] for result in results)

    def _all(self, cate_pred: Tensor, soft: SoftMasks) -> tuple[Tensor, ...]:
        nms_pre = self.config.nms_pre
        ranks = cate_pred.amax(dim=2)
        count = (ranks > self.config.score_thr).sum(dim=1).max().clamp(min=1)
        ranks, cells = ranks.topk(count, dim=1)
        first = limit(nms_pre, count)
        areas = totals = torch.zeros_like(cate_pred[..., 0])
        areas, totals = self._summed(soft, cells[:, :first], areas, totals)
        scores = self._rescored(cate_pred, areas, totals).flatten(1)
        if nms_pre > 0:
            bar = scores.topk(limit(nms_pre, scores.shape[1]), dim=1)[0][:, -1:]
            hopeful = (ranks > bar * (1 - ROUNDING)).sum(dim=1).max()
            last = torch.maximum(hopeful, first)
            rest = torch.minimum(first, last - 1)  # the last cell again if no more cells are left
            areas, totals = self._summed(soft, cells[:, rest:last], areas, totals)
            scores = self._rescored(cate_pred, areas, totals).flatten(1)
        count = (scores > NO_CANDIDATE).sum(dim=1).max().clamp(min=1)
        scores, pairs = scores.topk(limit(nms_pre, count), dim=1)
        cells = torch.div(pairs, cate_pred.shape[2], rounding_mode='floor')
        return scores, pairs, areas.gather(1, cells)

    def _summed(self, soft: SoftMasks, cells: Tensor, areas: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        more_areas, more_totals = soft.sums(cells, self.config.mask_thr)
        return areas.scatter(1, cells, more_areas), totals.scatter(1, cells, more_totals)

    def _rescored(self, cate_pred: Tensor, areas: Tensor, totals: Tensor) -> Tensor:
        maskness = totals / areas.clamp(min=1)
        valid = (cate_pred > self.config.score_thr) & (areas > self.strides)[..., None]
        return torch.where(valid, cate_pred * maskness[..., None], torch.full_like(cate_pred, NO_CANDIDATE))

    def _capped(self, cate_pred: Tensor, soft: SoftMasks) -> tuple[Tensor, ...]:
        ranks, pairs = cate_pred.flatten(1).topk(self.cap, dim=1)
        cells = torch.div(pairs, cate_pred.shape[2], rounding_mode='floor')
        areas, totals = soft.sums(cells, self.config.mask_thr)
        valid = (ranks > self.config.score_thr) & (areas > self.strides[cells])
        scores = torch.where(
            valid, ranks * (totals / areas.clamp(min=1)), torch.full_like(ranks, NO_CANDIDATE)
        )
        scores, rows = scores.topk(capped(self.cap, self.config.nms_pre), dim=1)
        return scores, pairs.gather(1, rows), areas.gather(1, rows)

    def _best(self, scores: Tensor, cells: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        max_per_img = self.config.max_per_img
        if self.cap:
            scores, rows = scores.topk(capped(self.cap, self.config.nms_pre, max_per_img), dim=1)
        else:
            scores, rows = scores.topk(limit(max_per_img, scores.shape[1]), dim=1)
            count = (scores > NO_CANDIDATE).sum(dim=1).max().clamp(min=1)
            scores, rows = scores[:, :count], rows[:, :count]
        return scores, cells.gather(1, rows), labels.gather(1, rows)


def matrix_decay(
    scores: Tensor, labels: Tensor, areas: Tensor, overlaps: Tensor, config: MaskConfig
) -> Tensor:
    """Return the factors (B, k) float32 by which the matrix NMS lowers scores; -1 stands for mmdet's NaN.

    Args:
        scores: (B, k), descending, k at least 1; NO_CANDIDATE takes no part.
        labels: (B, k) int64.
        areas: (B, k) float32, pixels above the threshold.
        overlaps: (B, k, k) float32, pixels that two masks share.
        config: kernel ('gaussian', else linear) and sigma.

    Source: mmdet 2.28.2 `mask_matrix_nms`.
    """
    order = torch.arange(scores.shape[1], device=scores.device)
    above = (order[:, None] < order[None, :])[None]
    present = scores > NO_CANDIDATE
    related = above & (labels[:, :, None] == labels[:, None, :]) & present[:, None, :]
    union = areas[:, None, :] + areas[:, :, None] - overlaps
    iou = torch.where(related, overlaps / union.clamp(min=1), torch.zeros_like(overlaps))
    compensation = iou.amax(dim=1)[:, :, None]
    if config.kernel == 'gaussian':
        factors = torch.exp(-config.sigma * iou**2) / torch.exp(-config.sigma * compensation**2)
        return factors.amin(dim=1)
    factors = (1 - iou) / (1 - compensation)
    broken = torch.isnan(factors)
    smallest = torch.where(broken, torch.zeros_like(factors), factors).amin(dim=1)
    return torch.where(broken.to(factors.dtype).amax(dim=1) > 0, torch.full_like(smallest, -1.0), smallest)
