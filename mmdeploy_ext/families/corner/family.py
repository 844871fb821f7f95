"""The family of detectors of corners: what it claims and refuses, and what the other modules give."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models import dense_heads, detectors
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.corner import graphs, reference, samples
from mmdeploy_ext.families.corner.postprocess import FEWEST_CORNERS, PAIRS, suppression, thresholds
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Kind, Limit
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.exaggerated import changed_outputs

HEADS = (dense_heads.CentripetalHead, dense_heads.CornerHead)
METHODS = ('simple_test', 'forward', 'get_bboxes', '_get_bboxes_single', '_bboxes_nms', 'decode_heatmap')
"""Methods of upstream that the graph repeats."""
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

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.CornerNet) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, thresholds, sizes."""
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            detector_parts.same_methods(DETECTORS.get(cfg.model.type), detectors.CornerNet, METHODS)
            head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg)
            upstream = next((one for one in HEADS if isinstance(head, one)), None)
            if upstream is None:
                raise ConfigError(f'model.bbox_head.type={type(head).__name__}: expected CornerHead')
            detector_parts.same_methods(type(head), upstream, METHODS)
            thresholds(test_cfg)
            suppression(test_cfg)
        detector_parts.check(cfg.model, options)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`."""
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

        with changed_outputs(head, change):
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
        """See `ImageFamily.result_limit`."""
        return ResultLimit(model.bbox_head.test_cfg, available=PAIRS)
