"""How many candidates PyTorch has: what the outputs of files with constant shapes have to count."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.two_stage.proposals import needed, thresholds
from mmdeploy_ext.families.two_stage.reference import boxes_alone, maps_of, metas_of

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
