"""SOLO, Decoupled SOLO and SOLOv2 as mmdet runs them, unpatched: what a proof compares the graphs with.

Source of the algorithm: mmdet 2.28.2 `models/dense_heads/{solo_head,solov2_head}.py` and
`core/post_processing/matrix_nms.py`. Glossary: see `graphs.py`; g grid of a level.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.runtime.detections import Instances, count_bounds
from projects.mmdet_plugin.solo.graphs import fork_is_flat, fork_names, kind, raw_names
from projects.mmdet_plugin.solo.networks import flat_cells, points_nms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.inputs.pictures import PreparedImage

TIE = 1e-4
"""Scores of neighbouring cells whose ratio is this close to 1 are a tie: an engine's rounding decides.

It is the bar of raw tensors. Rounding changes low scores of full-size heads with seeded weights by up to
3.7e-4 of themselves (`tests/matrix/test_solo_matrix.py`), and a pair 1.3e-5 apart did change places.
"""
SIGMOID_TIE = 3e-7
"""Scores that are this close are a tie, too: ONNX Runtime's sigmoid moves each of them by up to 1.5e-7.

Measured against float64 on the CPU (1.31.1): its steps are 3e-8 at every score, so that it is off by 3e-4 of
a score of 5e-4 and by 2.5e-3 of one of 6e-5. A pair 6.4e-9 apart at 5.6e-5 did change places.
"""


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, layout: str = 'batched', **_: Any
) -> dict[str, np.ndarray]:
    """Return the tensors of `raw` by mmdet's own head, SOLOv2's points NMS as in `get_results`."""
    head = model.mask_head
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        scores, *rest = _by_mmdet(head, model.extract_feat(image))
    named = arrange(head, scores, rest, layout)
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
    """Return the results of mmdet's `get_results`."""
    metas = [dict(img_shape=(*image.img_shape, 3), ori_shape=(*image.ori_shape, 3)) for image in images]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        batch = torch.from_numpy(np.stack([image.tensor for image in images]))
        batch = batch.to(next(model.parameters()).device)
        results = model.mask_head.simple_test(model.extract_feat(batch), metas)
    return [
        Instances(
            found.masks.cpu().numpy().astype(bool),
            found.scores.cpu().numpy(),
            found.labels.cpu().numpy().astype(np.int64),
        )
        for found in results
    ]


def interchangeable_zeros(
    model: nn.Module, feeds: Mapping[str, np.ndarray], layout: str = 'batched', **_: Any
) -> dict[str, np.ndarray]:
    """Return scores of points-NMS ties below the threshold; see `ImageFamily.interchangeable_zeros`.

    Both engines may give such a cell its score or zero; no result depends on it.
    """
    head = model.mask_head
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        levels = [_ties(scores, head.test_cfg.score_thr) for scores in _scores_before_nms(model, image)]
    named = arrange_scores(head, levels, layout)
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **_: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return how many (cell, class) pairs pass after points NMS; see `ImageFamily`."""
    scores = tensors(model, feeds, 'raw')['cate_pred']
    return dict(candidates=count_bounds(scores, float(model.mask_head.test_cfg.score_thr), slack))


def arrange(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any], layout: str
) -> dict[str, torch.Tensor]:
    """Name the outputs of mmdet's head as a `raw` graph has them.

    Args:
        head: of mmdet.
        scores: per level (B, C, g, g) after points NMS.
        rest: mmdet's other outputs: lists of levels, and SOLOv2's mask features.
        layout: 'batched' or 'fork'.
    """
    if layout == 'fork':
        return _arrange_fork(head, scores, rest)
    if kind(head) == 'SOLOV2Head':
        flat = [flat_cells(rest[0]), rest[1]]
    else:
        flat = [torch.cat(list(levels), dim=1) for levels in rest]
    return dict(zip(raw_names(head), [flat_cells(scores), *flat], strict=True))


def _arrange_fork(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any]
) -> dict[str, torch.Tensor]:
    last = [level.permute(0, 2, 3, 1) for level in scores]
    if fork_is_flat(head):
        tensors = [*flat_cells(scores).unbind(0), *flat_cells(rest[0]).unbind(0), rest[1]]
    elif kind(head) == 'SOLOV2Head':
        tensors = [*last, *rest[0], rest[1]]
    else:
        tensors = [*(level for levels in rest for level in levels), *last]
    return dict(zip(fork_names(head, len(scores[0])), tensors, strict=True))


def arrange_scores(head: nn.Module, levels: Sequence[torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """Name per-level (B, C, g, g) tensors as the outputs that hold the scores."""
    if layout == 'fork' and fork_is_flat(head):
        names, tensors = fork_names(head, len(levels[0])), flat_cells(levels).unbind(0)
        return dict(zip(names[: len(tensors)], tensors, strict=True))
    if layout == 'fork':
        return {f'cate_pred_{index}': level.permute(0, 2, 3, 1) for index, level in enumerate(levels)}
    return dict(cate_pred=flat_cells(levels))


def _by_mmdet(head: nn.Module, pyramid: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Return mmdet's head outputs with the scores first: scores, then masks, kernels, features."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outputs = head(pyramid)
    if kind(head) == 'SOLOV2Head':
        kernels, logits, features = outputs
        return [points_nms(level) for level in logits], kernels, features
    return outputs[-1], *outputs[:-1]


def _scores_before_nms(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return per level (B, C, g, g) scores of the unpatched model before points NMS."""
    logits: list[torch.Tensor] = []
    handle = model.mask_head.conv_cls.register_forward_hook(lambda *call: logits.append(call[2]))
    try:
        _by_mmdet(model.mask_head, model.extract_feat(image))
    finally:
        handle.remove()
    return [level.sigmoid() for level in logits]


def _ties(scores: torch.Tensor, score_thr: float) -> torch.Tensor:
    """Return (B, C, g, g): scores below the threshold that equal the largest neighbour up or left, or NaN."""
    padded = torch.nn.functional.pad(scores, (1, 0, 1, 0))
    above, left, corner = padded[:, :, :-1, 1:], padded[:, :, 1:, :-1], padded[:, :, :-1, :-1]
    rival = torch.maximum(torch.maximum(above, left), corner)
    tied = ((scores - rival).abs() <= TIE * scores + SIGMOID_TIE) & (scores < score_thr)
    return torch.where(tied, scores, torch.full_like(scores, torch.nan))
