"""Two-stage detectors: supported configs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.two_stage import candidate_limits, checks, graphs, panoptic, settings, split_graphs
from mmdeploy_ext.families.two_stage.reference import TwoStagePanopticReference, TwoStageReference, stacked
from mmdeploy_ext.families.two_stage.supported_parts import (
    DETECTOR_CLASSES,
    PANOPTIC,
    UNTRACED,
    is_image_branch,
)
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import MAX_CANDIDATES, MAX_PROPOSALS, Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, Stage


def claims(cfg: Any) -> Claim:
    detector = detector_parts.detector_of(cfg)
    if detector and nearest_base(detector, ['SparseRCNN']):  # traced
        return Claim.NO
    is_claimed = detector_parts.detects(cfg, DETECTOR_CLASSES) or is_image_branch(cfg)
    return Claim.HEAD if is_claimed else Claim.NO


@dataclasses.dataclass(eq=False, kw_only=True)
class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each, or only propose.

    Attributes:
        proposes: whether the detectors have an `rpn_head`; otherwise proposals are an input.
    """

    task: str = 'bbox2d'
    forms: tuple[str, ...] = ('full', *split_graphs.FORMS)
    proposes: bool = True
    name = 'two_stage'
    reference = TwoStageReference
    untraced = (*ImageFamily.untraced, *UNTRACED)
    num_classes, facts = staticmethod(settings.num_classes), staticmethod(settings.facts_of)
    claims = staticmethod(claims)

    def for_config(self, cfg: Any) -> ImageFamily:
        if is_image_branch(cfg):
            from mmdeploy_ext.families.two_stage import image_branch  # noqa: F401 - registers data sets

            return BOXES
        if detector_parts.detects(cfg, PANOPTIC):
            return MAPS
        if not cfg.model.get('rpn_head'):
            return BOXES_OF_PROPOSALS
        return MASKS if detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head') else BOXES

    def check(self, cfg: Any, options: Options) -> None:
        if is_image_branch(cfg):
            from mmdeploy_ext.families.two_stage import image_branch  # imports mmdet3d

            image_branch.check(cfg, options)
        else:
            checks.check_two_stage(cfg, options)

    def sorted_levels(self, cfg: Any, options: Options) -> dict[str, list[int]]:
        heads = self._proposing_heads(cfg)
        if not heads:
            return {}
        return {detector_parts.nms_pre_key(cfg, 'rpn'): candidate_limits.anchors(heads['rpn_head'], options)}

    def most_candidates(self, cfg: Any, options: Options) -> dict[str, int]:
        heads = self._proposing_heads(cfg)
        if not heads:
            return {}
        most = candidate_limits.most(heads, options)
        try:
            limited = options.replace(**dict.fromkeys(most, 1))
            candidate_limits.check_proposals(heads['rpn_head'], limited)
            candidate_limits.check(heads, limited)
        except UsageError:  # suppression without limits, whose files have none
            return {}
        return most

    def _proposing_heads(self, cfg: Any) -> dict[str, nn.Module]:
        if is_image_branch(cfg) or not cfg.model.get('rpn_head'):
            return {}
        with refused_by_name(cfg):
            return checks.heads_of(cfg)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        if self.proposes:
            return
        if getattr(dataset, 'proposals', None) is None:
            raise ConfigError(
                f'{cfg.filename}: data.test.proposal_file is missing; {cfg.model.type} reads its '
                'proposals from this file'
            )
        if 'proposals' not in dataset[0]:
            raise ConfigError(
                f'{cfg.filename}: data.test.pipeline collects no proposals; expected LoadProposals, and '
                f'proposals in the keys of ToTensor, ToDataContainer and Collect'
            )

    def build(self, cfg: Any) -> nn.Module:
        if is_image_branch(cfg):
            from mmdeploy_ext.families.two_stage import image_branch  # imports mmdet3d

            return image_branch.build(cfg)
        return super().build(cfg)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        if options.form in split_graphs.FORMS:
            return split_graphs.spec(model, options)
        return graphs.spec(model, options)

    def stages(self, model: nn.Module, options: Options) -> list[Stage]:
        if options.form in split_graphs.FORMS:
            return split_graphs.stages(model, options)
        return graphs.stages(model, options)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        (graph,) = super().graphs(model, options)
        if options.form == split_graphs.REGIONS:
            graph = dataclasses.replace(graph, example=split_graphs.example(model, options))
        return [graph]

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        if self.task == 'boxed_mask':
            return image_graphs.feeds_with_sizes(images, rescale)
        feeds = image_graphs.feeds(images, rescale)
        if not self.proposes:
            feeds['proposals'] = stacked([image_graphs.proposals_of(image) for image in images])
        return feeds


class TwoStagePanopticFamily(ImageFamily):
    name = 'two_stage'
    task = 'panoptic'
    forms = ('full', 'raw')
    reference = TwoStagePanopticReference
    untraced = (*ImageFamily.untraced, *UNTRACED)
    spec, stages = staticmethod(panoptic.spec), staticmethod(panoptic.stages)
    feeds = staticmethod(panoptic.feeds_with_size)
    num_classes, facts = staticmethod(settings.num_classes), staticmethod(settings.facts_of)
    claims = staticmethod(claims)

    def check(self, cfg: Any, options: Options) -> None:
        options.refuse((MAX_CANDIDATES, MAX_PROPOSALS, PASTE_MASKS), 'this model returns maps')
        heads = checks.check_two_stage(cfg, options)
        with refused_by_name(cfg):
            panoptic.check_heads(cfg, heads['roi_head'])


BOXES = TwoStageFamily()
MASKS = TwoStageFamily(task='boxed_mask')
BOXES_OF_PROPOSALS = TwoStageFamily(forms=('full',), proposes=False)
MAPS = TwoStagePanopticFamily()
