"""The family of detectors of corners: which configs it claims and refuses, and what a proof changes.

What the attributes and methods of `CornerFamily` without a docstring are for is documented where they are
defined first: `families/base.py` and `families/images.py`. `result_limit` tells a proof which entry of
`test_cfg` limits the results of an image.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.corner import graphs
from mmdeploy_ext.families.corner.graphs import FEWEST_CORNERS, PAIRS, suppression, thresholds
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Kind, Limit
from mmdeploy_ext.families.parts import detector_parts, image_feeds, mmdet_reference
from mmdeploy_ext.families.parts.exaggerated import changed_forward

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
HEADS = (dense_heads.CentripetalHead, dense_heads.CornerHead)
"""Heads that export."""
CLOSER, BAND = 4.0, 3
"""Divisor of the shifts in every second band of rows, and rows of a band: pairs of corners as close as that
make boxes so small that their central region has another size."""


def closer(log_shifts: torch.Tensor) -> torch.Tensor:
    """Return logarithms of shifts (B, 2, h, w), in cells, that are shorter in every second band of rows."""
    rows = torch.arange(log_shifts.shape[2], device=log_shifts.device)
    in_band = (rows // BAND % 2 == 0)[:, None]
    return torch.where(in_band, log_shifts - math.log(CLOSER), log_shifts)


class CornerFamily(ImageFamily):
    """mmdet's `CornerNet`, whose boxes are pairs of corners."""

    name = 'corner'
    exports = 'CornerNet and CentripetalNet (mmdeploy_ext/families/corner/README.md)'
    similar_names = ('CornerNet', 'CornerHead', 'CentripetalHead')
    task = 'bbox2d'
    forms = ('full',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_feeds.feeds)
    reference_detections = staticmethod(mmdet_reference.box_detections)

    def claims(self, cfg: Any) -> Claim:
        """Claim every CornerNet; `check` refuses those with other heads, by the key."""
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.CornerNet) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg)
            if not isinstance(head, HEADS):
                raise ConfigError(
                    f'model.bbox_head.type={type(head).__name__}: expected CornerHead or CentripetalHead'
                )
            thresholds(test_cfg)
            suppression(test_cfg)
        detector_parts.check(cfg.model, options)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(thresholds(model.bbox_head.test_cfg), num_classes=self.num_classes(model))

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        """Inside the block half of the corners of a CentripetalNet point at centres of small boxes.

        A head that pairs corners by embeddings stays as it is.
        """
        head = model.bbox_head
        if head.with_corner_emb:
            yield
            return

        def change(outputs: Any) -> Any:
            *maps, first_shifts, last_shifts = outputs
            return *maps, [closer(level) for level in first_shifts], [closer(level) for level in last_shifts]

        with changed_forward(head, change):
            yield

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the limits of corners, of pairs, and of their suppression.

        A proof runs PyTorch and an export with other values of each, so that decisions are taken both ways.
        For `distance_threshold`, which is another quantity of a CentripetalNet, see `graphs.thresholds`.
        """
        config = model.bbox_head.test_cfg
        return [
            Limit(config, 'corner_topk', Kind.CANDIDATES, minimum=FEWEST_CORNERS),
            Limit(config, 'distance_threshold', Kind.NUMBER, never=-1.0),
            *(limit for limit in super().limits(model) if limit.key != 'score_thr'),  # which nothing reads
        ]

    def result_limit(self, model: nn.Module) -> ResultLimit:
        """Return the limit of results, of which there are at most as many as pairs that mmdet's head keeps.

        That number is read from the head, the default of its `num_dets`, not from the code of the graph,
        unless there is no such default: a proof raises the limit up to it.
        """
        pairs = inspect.signature(model.bbox_head.decode_heatmap).parameters.get('num_dets')
        available = pairs.default if pairs and isinstance(pairs.default, int) else PAIRS
        return ResultLimit(model.bbox_head.test_cfg, available=available)
