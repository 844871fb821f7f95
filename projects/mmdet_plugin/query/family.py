"""The family of detectors of queries: what it claims and refuses, and what the other modules give."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

from mmdet.models.builder import DETECTORS

from mmdeploy_ext.contract.families.query import OPTIONS
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import Claim, register_family
from mmdeploy_ext.families.images import ImageFamily
from projects.mmdet_plugin.dense import parts
from projects.mmdet_plugin.query import graphs, kinds, postprocess, reference, samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from mmdeploy_ext.contract.option import Options

GRID_SAMPLE_OPSETS = (16, 20)
"""GridSample exists from 16 on."""


class QueryFamily(ImageFamily):
    """mmdet's detectors whose decoder asks the same queries of every image."""

    name = 'query'
    exports = 'DETR and Deformable DETR (projects/mmdet_plugin/query/README.md)'
    near = ('DETRHead', 'DeformableDETR', 'DINO', 'Transformer', 'Query', 'SparseRCNN')
    task = 'bbox2d'
    forms = ('full',)
    own_options = OPTIONS
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(samples.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        detector = DETECTORS.get(cfg.model.get('type') or '')
        known = detector is not None and issubclass(detector, kinds.DETECTORS)
        return Claim.DETECTOR if known else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, opset, limits."""
        content = dict(copy.deepcopy(cfg.model.bbox_head), train_cfg=None)  # mmdet writes into it
        content['test_cfg'] = cfg.model.get('test_cfg') or cfg.get('test_cfg') or {}
        try:
            kinds.check_detector(DETECTORS.get(cfg.model.type))
            head = parts.built_head(content, 'model.bbox_head')
            kinds.check_head(head)
            _check_limit(head)
        except ConfigError as error:
            raise ConfigError(f'{cfg.filename}: {error}') from error
        parts.check(cfg.model, options)
        low, high = GRID_SAMPLE_OPSETS
        if kinds.samples_points(head) and not low <= options.opset <= high and options.opset:
            raise UsageError(
                f'--opset-version {options.opset}: {type(head).__name__} needs GridSample, which ONNX has '
                f'since opset {low}; expected {low} to {high}'
            )

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`."""
        head = model.bbox_head
        return dict(max_per_img=postprocess.max_per_img(head), num_classes=int(head.num_classes))

    @contextlib.contextmanager
    def raised_result_limit(self, model: nn.Module) -> Iterator[None]:
        """See `ImageFamily.raised_result_limit`: as long as there are results."""
        head = model.bbox_head
        config, most = head.test_cfg, postprocess.max_per_img(head)
        before = dict(config)
        config['max_per_img'] = min(2 * most, postprocess.pairs(head))
        try:
            yield
        finally:
            config.clear()
            config.update(before)


def _check_limit(head: nn.Module) -> None:
    """Refuse a number of results that the head does not have.

    Raises:
        ConfigError: says both numbers.
    """
    most, there = postprocess.max_per_img(head), postprocess.pairs(head)
    if not 0 < most <= there:
        raise ConfigError(f'model.test_cfg.max_per_img={most}; expected 1 to {there}, as many as there are')


register_family(QueryFamily())
