"""The selection of a dense head, found by trying its own `get_bboxes`."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from mmcv import ConfigDict
from torch import nn

from mmdeploy_ext.families.common.dense_heads import HeadKind
from mmdeploy_ext.families.common.mmdet_reference import metas_of
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

NMS_PRE, MAX_PER_IMG = 5, 9
"""Limits of a trial; only the first has `MAX_PER_IMG`, which hides the worse results."""
UNLIMITED = 10**6
SEEDS = range(6)
CANDIDATES = 2.5
SPREAD = 1.5
CORNERS = np.asarray([-1.0, -1.0, 1.0, 1.0], np.float32).reshape(4, 1, 1)
SCALE = np.asarray([1.5, 1.25, 1.5, 1.25], np.float32)
BORDER = (3, 6)
Results = Callable[[DenseFacts, Mapping[str, torch.Tensor], PreparedImage], Detections]
"""(facts, outputs by name (1, a*columns, h, w), picture) -> results."""


class Trial(NamedTuple):
    """Generated outputs of a head for one picture, and its own results.

    Attributes:
        maps: name of an output -> (1, a*columns, h, w).
        limits: `nms_pre` and `max_per_img`, -1 without a limit.
    """

    maps: Mapping[str, torch.Tensor]
    image: PreparedImage
    limits: Mapping[str, int]
    results: Detections


def variants(facts: DenseFacts) -> Iterator[DenseFacts]:
    """Yield the kind's facts, then facts of other selections."""
    yield facts
    if not facts.head.suppresses:
        return
    choices = ('pairs', 'priors', 'class_priors', 'factor_priors', 'all')
    if not facts.head.factor:
        choices = ('pairs', 'priors', 'all')
    for choose, judged, clip in itertools.product(
        choices, ('class', 'product'), (facts.clip_border, not facts.clip_border)
    ):
        head = dataclasses.replace(facts.head, choose=choose, judged=judged)
        yield dataclasses.replace(facts, head=head, clip_border=clip)


def trials(head: nn.Module, kind: HeadKind, facts: DenseFacts, lifted: tuple[str, ...] = ()) -> list[Trial]:
    found = []
    if 'deploy_nms_pre' in head.test_cfg:  # replaces `nms_pre`, and is no limit with -1
        lifted = (*lifted, 'nms_pre')
    for seed in SEEDS:
        limits = dict(nms_pre=NMS_PRE, max_per_img=UNLIMITED if seed else MAX_PER_IMG)
        for name in limits:
            if getattr(facts, name) < 0:
                limits[name] = UNLIMITED if name in lifted else -1
        if not facts.head.suppresses:
            limits['max_per_img'] = NMS_PRE
        maps = dict(generated(facts, seed))
        image = picture(facts, maps[f'{facts.head.names[0]}_0'].shape[2:])
        own_cfg, entries = head.test_cfg, dict(limits, topk=NMS_PRE)
        head.test_cfg = ConfigDict(own_cfg, **{name: entries[name] for name in entries if name in own_cfg})
        try:
            (results,) = own_results(head, kind, list(maps.values()), [image], rescale=True)
        finally:
            head.test_cfg = own_cfg
        found.append(Trial(maps, image, limits, results))
    return found


def own_results(
    head: nn.Module,
    kind: HeadKind,
    maps: Sequence[torch.Tensor],
    images: Sequence[PreparedImage],
    rescale: bool,
) -> list[Detections]:
    device, detections = next(head.parameters()).device, []
    given = kind.unflatten(head, [tensor.clone().to(device) for tensor in maps])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
        results = head.get_bboxes(*given, img_metas=metas_of(images), rescale=rescale)
    for rows, labels in results:
        boxes, labels = rows[:, :5].cpu().numpy(), labels.cpu().numpy()
        kept = ~np.isnan(boxes).any(1) & (boxes[:, 4] > 0)
        detections.append(Detections(boxes[kept, :4], boxes[kept, 4], labels[kept]))
    return detections


def picture(facts: DenseFacts, size: Sequence[int]) -> PreparedImage:
    largest, finest = max(facts.strides), min(facts.strides)
    height, width = (side * finest for side in size)
    content = (height, width) if len(facts.strides) == 1 else (round(1.2 * largest), round(2.6 * largest))
    border = BORDER if facts.head.bordered else (0, 0)
    return PreparedImage(np.zeros((3, height, width), np.float32), content, SCALE, (height, width), border)


def generated(facts: DenseFacts, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    draw, head = np.random.default_rng(seed), facts.head
    shape = (5, 8) if len(facts.strides) == 1 else (2, 4)
    share = min(CANDIDATES / facts.num_classes, 0.7)
    threshold = min(max(facts.score_thr, 0.02), 0.9)
    passing = math.log(threshold / (1 - threshold)) - NormalDist(0, SPREAD).inv_cdf(1 - share)
    for name, columns in head.outputs:
        for level, priors in enumerate(facts.base_anchors):
            values = draw.standard_normal((1, len(priors), columns, *shape), np.float32)
            if name == head.scores:
                of_prior = draw.standard_normal((1, len(priors), 1, *shape), np.float32)
                values[:, :, head.first_class :] *= 1.3
                values[:, :, head.first_class :] += 0.7 * of_prior + passing
                if head.activation == 'softmax':
                    values[:, :, -1] = 0.0
                if head.activation == 'none':
                    values = 1 / (1 + np.exp(-values))
                if name == 'pred_map':
                    values[:, :, 2:4] *= 0.5
                    values[:, :, 4] += 1.0
            elif name in facts.coder.columns:
                values = _spread(facts, name, values, level)
            yield f'{name}_{level}', torch.from_numpy(values.reshape(1, -1, *shape))


def _spread(facts: DenseFacts, name: str, values: np.ndarray, level: int) -> np.ndarray:
    coder = facts.coder.type
    if coder == 'distance':
        return np.abs(values) * facts.strides[level] * 2 + 0.01
    if coder == 'tblr':
        return np.abs(values) * 0.2 + 0.01
    if coder == 'scaled':
        return (np.abs(values) + 0.5) * 2 * CORNERS
    if coder == 'centre':
        return np.abs(values) * (6.0 if name == 'wh' else 0.3)
    if coder in ('integral', 'bucket'):
        return values * (1.0 if name == 'bbox_cls' else 2.0)
    return values * (0.3 if name == 'shape_pred' else 0.5)


def first_equal(candidates: Iterable[DenseFacts], tried: list[Trial], results: Results) -> DenseFacts | None:
    """Return the first facts that reproduce every trial, or None."""
    for facts in candidates:
        if all(
            same(results(dataclasses.replace(facts, **trial.limits), trial.maps, trial.image), trial.results)
            for trial in tried
        ):
            return facts
    return None


def same(found: Detections, wanted: Detections) -> bool:
    """Return whether two lists have the same detections, in any order."""
    if len(found) != len(wanted):
        return False
    scale = max(1.0, float(np.abs(wanted.bboxes_xyxy).max(initial=0)))
    free = np.ones(len(found), bool)
    for box, score, label in zip(wanted.bboxes_xyxy, wanted.scores, wanted.labels, strict=True):
        near = free & (found.labels == label) & (np.abs(found.scores - score) <= 1e-5)
        near &= np.abs(found.bboxes_xyxy - box).max(1) <= 1e-4 * scale
        if not near.any():
            return False
        free[near.argmax()] = False
    return True
