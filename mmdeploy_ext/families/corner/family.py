"""The family of detectors of corners: what it claims and refuses, and what the other modules give."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.corner import graphs, reference, samples
from mmdeploy_ext.families.corner.postprocess import FEWEST_CORNERS, PAIRS, suppression, thresholds
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Kind, Limit
from mmdeploy_ext.families.parts import detector_parts, followed
from mmdeploy_ext.families.parts.exaggerated import changed_forward
from mmdeploy_ext.families.replaced import Replaced

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
HEADS = (dense_heads.CentripetalHead, dense_heads.CornerHead)
METHODS = (
    *('simple_test', 'simple_test_bboxes', 'get_bboxes', '_get_bboxes_single'),
    *('_bboxes_nms', 'decode_heatmap'),
)
FOLLOWED = (
    (detectors.CornerNet, followed.DETECTOR_METHODS),
    *((head, METHODS) for head in HEADS),
    *followed.FUNCTIONS,
)
"""See `Family.followed`."""
CLOSER, BAND = 4.0, 3
"""What shifts are divided by in every second band of so many rows of cells: pairs of corners as near as that
make boxes below the size from which on the central region is another one."""


def closer(shifts: torch.Tensor) -> torch.Tensor:
    """Return logarithms of shifts (B, 2, h, w), in cells, that are shorter in every second band of rows."""
    banded = torch.arange(shifts.shape[2], device=shifts.device) // BAND % 2 == 0
    return torch.where(banded[:, None], shifts - math.log(CLOSER), shifts)


class CornerFamily(ImageFamily):
    """mmdet's `CornerNet`, whose boxes are pairs of corners."""

    name = 'corner'
    exports = 'CornerNet and CentripetalNet (mmdeploy_ext/families/corner/README.md)'
    near = ('CornerNet', 'CornerHead', 'CentripetalHead')
    task = 'bbox2d'
    forms = ('full',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(samples.feeds)
    reference_detections = staticmethod(reference.detections)

    followed = FOLLOWED

    def replaced(self, model: nn.Module) -> Iterator[Replaced]:
        """Yield the methods of the detector and of its head."""
        yield from followed.replaced_of_class(model, FOLLOWED)
        yield from followed.replaced_in([model.bbox_head], FOLLOWED)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.CornerNet) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, thresholds, sizes."""
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg)
            if not isinstance(head, HEADS):
                raise ConfigError(f'model.bbox_head.type={type(head).__name__}: expected CornerHead')
            thresholds(test_cfg)
            suppression(test_cfg)
        detector_parts.check(cfg.model, options)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(thresholds(model.bbox_head.test_cfg), num_classes=self.num_classes(model))

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        """Let half of the corners of a CentripetalNet point at centres of small boxes."""
        head = model.bbox_head
        if head.with_corner_emb:
            yield
            return

        def change(outputs: Any) -> Any:
            *others, first_shifts, last_shifts = outputs
            return *others, [closer(maps) for maps in first_shifts], [closer(maps) for maps in last_shifts]

        with changed_forward(head, change):
            yield

    def limits(self, model: nn.Module) -> list[Limit]:
        """See `ImageFamily.limits`: of corners, of pairs, and of their suppression."""
        config = model.bbox_head.test_cfg
        return [
            Limit(config, 'corner_topk', Kind.CANDIDATES, least=FEWEST_CORNERS),
            Limit(config, 'distance_threshold', Kind.NUMBER, never=-1.0),
            *(limit for limit in super().limits(model) if limit.key != 'score_thr'),  # which nothing reads
        ]

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(model.bbox_head.test_cfg, available=PAIRS)
