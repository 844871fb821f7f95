"""Dense heads as mmdet runs them, unpatched: what a proof compares the graphs with."""

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract.dense_head import Head
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.dense.forms import described, flat_outputs, raw_names
from mmdeploy_ext.families.dense.kinds import generator_of, kind_of, thresholds
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of, tested
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, count_bounds

TIE = 1e-5
"""Scores of neighbouring cells this close, of the largest one, are a tie: engines round them differently."""


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, score_form: str = 'separate', **_: Any
) -> dict[str, np.ndarray]:
    """Return the tensors of `raw` or `decode` by mmdet's own head, priors and box coder."""
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        named = dict(zip(raw_names(model), flat_outputs(model, image), strict=True))
        if form != 'raw':
            named = _decode_by_mmdet(model, named)
            factor = described(model).factor
            if score_form == 'product' and factor:
                named['scores'] = named['scores'] * named.pop(factor)[..., None]
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path."""
    with _deployed_nms_pre(model.bbox_head):
        results = tested(model, images, metas_of(images), rescale)
    return [_without_padding(boxes_of_classes(result), described(model)) for result in results]


def _without_padding(found: Detections, head: Head) -> Detections:
    """Return one image's results without rows that are none.

    Where boxes vote, upstream divides zero by zero for a box without an area: such rows are no results. Nor
    are those of score 0, by which upstream fills up a list of peaks.
    """
    kept = found.scores > 0 if head.peaks else np.ones(len(found), bool)
    if head.votes:
        kept = ~(np.isnan(found.bboxes_xyxy).any(1) | np.isnan(found.scores))
    return Detections(found.bboxes_xyxy[kept], found.scores[kept], found.labels[kept])


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **_: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return how many (prior, class) pairs of the best of every level pass; see `ImageFamily`."""
    config, head = thresholds(model.bbox_head), described(model)
    decoded = tensors(model, feeds, 'decode')
    scores, factor = decoded['scores'], decoded.get(head.factor)
    ranks = scores if factor is None else scores * factor[..., None]
    ranks = np.sqrt(np.maximum(ranks, 0)) if head.root else ranks
    judged = ranks if head.judged == 'product' else scores
    if head.conf_thr > 0:
        judged = np.where(factor[..., None] >= head.conf_thr, judged, -1)
    most = config.nms_pre if config.nms_pre > 0 else np.iinfo(np.int64).max
    least, largest = 0, 0
    for level, chosen in zip(
        *(np.split(one, _ends(model, feeds), 1) for one in (judged, ranks)), strict=True
    ):
        level = CHOICES[head.choose](level, chosen, most)
        bounds = count_bounds(level, config.score_thr, slack)
        if head.choose == 'pairs':
            bounds = tuple(np.minimum(one, most) for one in bounds)
        least, largest = least + bounds[0], largest + bounds[1]
    return dict(candidates=(least, largest))


def interchangeable_zeros(
    model: nn.Module, feeds: Mapping[str, np.ndarray], **_: Any
) -> dict[str, np.ndarray]:
    """Return the scores of ties between neighbouring cells that are no results; see `ImageFamily`.

    Of two cells that differ by rounding either engine may see the other one as the peak.
    """
    head = described(model)
    if not head.peaks:
        return {}
    maps = torch.from_numpy(tensors(model, feeds, 'raw')[f'{head.scores}_0'])
    kept, edge = tensors(model, feeds, 'decode')['scores'], head.peaks // 2
    most = min(thresholds(model.bbox_head).nms_pre, kept[0].size)
    least = torch.from_numpy(kept).flatten(1).topk(most).values[:, -1].view(-1, 1, 1, 1)
    padded = torch.nn.functional.pad(maps, [edge] * 4, value=-1.0)
    windows = [
        padded[..., row : row + maps.shape[2], column : column + maps.shape[3]]
        for row in range(head.peaks)
        for column in range(head.peaks)
        if (row, column) != (edge, edge)
    ]
    beside = functools.reduce(torch.maximum, windows)
    tied = ((beside - maps).abs() <= TIE * maps.max()) & (maps < least)
    other = torch.where(tied, maps, torch.full_like(maps, torch.nan))
    return dict(scores=other.flatten(2).transpose(1, 2).numpy())


def _best_priors(judged: np.ndarray, ranks: np.ndarray, most: int) -> np.ndarray:
    rows = np.argsort(-ranks.max(2), 1, kind='stable')[:, :most]
    return np.take_along_axis(judged, rows[..., None], 1)


CHOICES = dict(
    pairs=lambda judged, ranks, most: judged,
    all=lambda judged, ranks, most: judged,
    best=lambda judged, ranks, most: judged.max(2),
    priors=_best_priors,
)
"""`Head.choose` -> the scores of a level that are counted."""


def _ends(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> list[int]:
    """Return where levels end in the rows of all, but the last."""
    raw = tensors(model, feeds, 'raw')
    first = described(model).names[0]
    per_cell = generator_of(model.bbox_head).num_base_priors
    sizes = [count * int(np.prod(raw[f'{first}_{level}'].shape[2:])) for level, count in enumerate(per_cell)]
    return np.cumsum(sizes)[:-1].tolist()


def _deployed_nms_pre(head: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a head takes `deploy_nms_pre` for `nms_pre`, where its config has it.

    -1 is more than there are candidates.
    """
    wanted = head.test_cfg.get('deploy_nms_pre')
    if wanted is None:
        return contextlib.nullcontext()
    return replaced_entry(head.test_cfg, 'nms_pre', wanted if wanted > 0 else sys.maxsize)


def _decode_by_mmdet(model: nn.Module, raw: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Decode with mmdet's own functions, level by level and image by image."""
    head, kind, described_head = model.bbox_head, kind_of(model.bbox_head), described(model)
    generator = generator_of(head)
    found: dict[str, list[torch.Tensor]] = dict(boxes=[], scores=[], factor=[])
    for level in range(len(generator.strides)):
        maps = kind.maps(head, {name: raw[f'{name}_{level}'] for name, _ in described_head.outputs})
        first = next(iter(maps.values()))
        priors = generator.single_level_grid_priors(first.shape[-2:], level, device=first.device)
        rows = {
            name: maps[name].permute(0, 2, 3, 1).reshape(len(first), -1, columns)
            for name, columns in described_head.outputs
        }
        images = [{name: one[image] for name, one in rows.items()} for image in range(len(first))]
        found['boxes'].append(torch.stack([kind.boxes(head, level, image, priors) for image in images]))
        scores, factors = zip(*(kind.scores(head, image, priors) for image in images), strict=True)
        found['scores'].append(torch.stack(scores))
        if described_head.factor:
            found['factor'].append(torch.stack(factors))
    named = dict(boxes=torch.cat(found['boxes'], 1), scores=torch.cat(found['scores'], 1))
    if described_head.factor:
        named[described_head.factor] = torch.cat(found['factor'], 1)
    if not described_head.maps_by_stride:
        named['level_sizes'] = torch.tensor([one.shape[1] for one in found['boxes']])
    return named
