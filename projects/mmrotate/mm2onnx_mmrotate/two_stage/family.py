"""The family of two-stage detectors of rotated boxes: which configs it claims and refuses.

What the attributes and methods of the class without a docstring are for is documented where they are
defined first: `families/images.py` and `families/base.py` of mm2onnx. The list named `first` is that of the
proposals; a trial, of a proof, exports what is behind the network once more, with other limits: `first_trial`
the choice of the proposals alone, `trial` all of it, with the proposals as one more output.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_mmrotate.pipeline import preprocess_rule
from mm2onnx_mmrotate.reference import compiled_suppression
from mm2onnx_mmrotate.suppression import KEEPS_ALL, rotated_nms_config
from mm2onnx_mmrotate.two_stage import graphs, heads, reference
from mm2onnx_mmrotate.two_stage.proposals import least_side
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Limit, entries_of
from mmdeploy_ext.families.parts import detector_parts, image_feeds
from mmdeploy_ext.families.parts.exaggerated import FACTOR, changed_outputs, exaggerated_cells
from mmdeploy_ext.families.parts.mmdet_reference import recorded
from mmdeploy_ext.families.parts.proposals import facts_of, generator_of, thresholds
from mmdeploy_ext.families.parts.regions import part_of
from mmdeploy_ext.preprocess.pictures import PreparedImage, PreprocessRule


def _exaggerated_regions(outputs: Any) -> Any:
    """Return outputs of a head of boxes with larger deltas in a quarter of the rows, by signs of two of them.

    The rows of a graph may have another order than those of mmrotate, so that no index can choose them.
    """
    scores, deltas, *shares = outputs
    far = (deltas[:, :1] > 0) & (deltas[:, 1:2] > 0)
    return scores, torch.where(far, deltas * FACTOR, deltas), *shares


UNREAD = ('nms_pre', 'min_bbox_size')
"""Entries of `test_cfg.rcnn` that no head reads."""


class RotatedTwoStageFamily(ImageFamily):
    """mmrotate's detectors that propose regions and look at each of them.

    Of the methods that `ImageFamily` describes, here `lists` returns the results ('') and the proposals of
    each image by PyTorch, `inner_lists` the proposals among the outputs of a trial of one image, and
    `scores_of` the scores of one of these lists for the first image. `result_limit` returns the entry of
    `test_cfg` that limits the number of results, `limits` all limits and thresholds that a detector reads.
    `exaggerated_first` is the context `exaggerated` for proposals alone. Sizes choose the level that a region
    is pooled from; `last_level_side` is the side of squares, pixels of the input, from which on it is the
    last.
    """

    name = 'rotated_two_stage'
    exports = 'two-stage detectors of rotated boxes (projects/mmrotate/README.md)'
    similar_names = ('RotatedFasterRCNN', 'OrientedRCNN', 'RoITransformer', 'GlidingVertex', 'ReDet')
    task = 'mm2onnx_mmrotate.task'
    forms = graphs.FORMS
    tie_keys = ('iou_thr', 'iou_threshold')
    keep_fp32 = ('proposals/*', 'regions/*')  # boxes in float16 are half a pixel coarse
    first, first_task = graphs.PROPOSALS, task
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_feeds.feeds)
    untraced = (
        *ImageFamily.untraced, '.extract_feat', '_bbox_forward', 'regress_by_class', 'map_roi_levels',
        '*roi_extractor*.forward',
    )  # fmt: skip
    reference_detections = staticmethod(reference.detections)
    first_list = staticmethod(reference.proposals_alone)

    def claims(self, cfg: Any) -> Claim:
        """Claim every config of mmrotate's two-stage detectors."""
        return Claim.HEAD if detector_parts.detects(cfg, heads.DETECTOR) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            for key in ('rpn_head', 'roi_head'):
                if not cfg.model.get(key):
                    raise ConfigError(f'model.{key} is missing; {cfg.model.type} exports with one')
            rpn_head = detector_parts.tested_head(cfg, 'rpn_head', test_cfg.get('rpn'))
            roi_head = detector_parts.tested_head(cfg, 'roi_head', test_cfg.get('rcnn'))
            heads.check_rpn_head(rpn_head)
            heads.check_roi_head(roi_head, heads.is_oriented(rpn_head))
            thresholds(rpn_head)
            least_side(rpn_head)
            rotated_nms_config(roi_head.test_cfg)
        last_head = heads.last_head(roi_head)
        if options.form == 'raw' and last_head.custom_cls_channels:
            raise UsageError(
                f'--postprocess raw: scores of {type(last_head.loss_cls).__name__} are no softmax of logits, '
                'which is what the runtime makes of a raw file; export decode or full'
            )
        detector_parts.check(cfg.model, options)
        strides = generator_of(rpn_head).strides
        detector_parts.check_smallest((int(stride[0]) for stride in strides), options)

    def seeded(self, cfg: Any, seed: int) -> nn.Module:
        from mm2onnx_mmrotate.two_stage.seeded import seeded_detector

        return seeded_detector(self.build(cfg), cfg, seed)

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        return preprocess_rule(cfg)

    def num_classes(self, model: nn.Module) -> int:
        return int(heads.last_head(model.roi_head).num_classes)

    def reference_tensors(
        self, model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return nothing: outputs of all forms have rows of proposals, and are compared by their results."""
        return {}

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return the settings of `test_cfg.rcnn` by name, without `UNREAD`, and those of coder and proposals.

        `two_stage/runtime.py` makes results by them.
        """
        config = rotated_nms_config(model.roi_head.test_cfg).to_json()
        read = {key: value for key, value in config.items() if key not in UNREAD}
        coder = heads.coder_of(heads.last_head(model.roi_head))
        return read | dict(
            coder=coder,
            num_classes=self.num_classes(model),
            angle_version=coder['version'],
            proposals=thresholds(model.rpn_head).to_json(),
        )

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        with compiled_suppression():
            return super().scores_of(model, images, name)

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(model.roi_head.test_cfg)

    def limits(self, model: nn.Module) -> list[Limit]:
        of_proposals = entries_of(model.rpn_head.test_cfg, 'rpn', graphs.PROPOSALS)
        return of_proposals + [
            dataclasses.replace(limit, head='rcnn', keeps_all=KEEPS_ALL)
            for limit in super().limits(model)
            if limit.key not in UNREAD and not any(map(limit.is_same_entry, of_proposals))
        ]

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        rows: list[Any] = []

        def record(result: Sequence[Any], *_: Any) -> None:
            rows.extend(reference.rows_of_proposals(result, model.rpn_head.version))

        with recorded(model.rpn_head, 'simple_test_rpn', record):
            return super().lists(model, images, rescale) | {graphs.PROPOSALS: rows}

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        proposals = outputs.get(graphs.PROPOSALS)
        if proposals is None:
            return {}
        (rows,) = proposals
        rows = rows[rows.any(axis=1)]  # the others are padding; a score may round to 0
        return {graphs.PROPOSALS: reference.boxes_of_rows(rows)}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        chain, outputs = self.stages(model, options), self.spec(model, options).outputs
        return graphs.with_proposals(chain[1:], outputs)

    def first_trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        spec = graphs.scored_proposals(heads.is_oriented(model.rpn_head))
        return [graphs.proposals_stage(model)], (spec,)

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        """Inside the block heads give extreme boxes, see `ImageFamily`; of regions, those of the last stage.

        Others would be pooled by the next one.
        """
        head = heads.last_head(model.roi_head)
        with self.exaggerated_first(model), changed_outputs(head, _exaggerated_regions):
            yield

    def exaggerated_first(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        head = model.rpn_head
        coder = None if heads.is_oriented(head) else facts_of(head)['coder']

        def change(outputs: Any) -> Any:
            scores, deltas = outputs
            return scores, [exaggerated_cells(level, coder) for level in deltas]

        return changed_outputs(head, change)

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        return True

    def last_level_side(self, model: nn.Module) -> float:
        extractor = part_of(model.roi_head, 'bbox_roi_extractor', 0)
        return float(extractor.finest_scale * 2 ** (extractor.num_inputs - 1))
