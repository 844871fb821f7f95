"""The family of two-stage detectors: what it claims and refuses, and what the other modules give."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph, Stage
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Limit, entries_of
from mmdeploy_ext.families.parts import (
    detector_parts,
    image_feeds,
    mask_settings,
    mmdet_reference,
    pasting,
    region_boxes,
    region_maps,
)
from mmdeploy_ext.families.parts.exaggerated import QUADRANT, changed_outputs, exaggerated_cells
from mmdeploy_ext.families.parts.image_feeds import feeds
from mmdeploy_ext.families.parts.image_tensors import box_outputs
from mmdeploy_ext.families.parts.regions import part_of, stages_of
from mmdeploy_ext.families.two_stage import (
    boxes,
    caps,
    counted,
    graphs,
    panoptic,
    proposals,
    reference,
    samples,
    split,
)
from mmdeploy_ext.families.two_stage.kinds import (
    FOLLOWED,
    KNOWN,
    PANOPTIC,
    check_detector,
    check_roi_head,
    replaced_methods,
    result_cfg,
    result_key,
)
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections


def _exaggerated_proposals(head: nn.Module) -> Callable[[Any], Any]:
    """Return what changes the outputs of a head of proposals: deltas, its second ones, in some cells."""
    coder = proposals.facts_of(head)['coder']

    def change(outputs: Any) -> Any:
        scores, deltas, *others = outputs
        return scores, [exaggerated_cells(one, coder) for one in deltas], *others

    return change


def _exaggerated_regions(head: nn.Module) -> Callable[[Any], Any]:
    """Return what changes the outputs of a head of boxes: the widths of some boxes, the heights of others.

    Where every class has a box it is those of every third class. Where all classes have one, the signs of its
    deltas choose, since regions may have another order in the graph.
    """
    box = torch.tensor(QUADRANT) / torch.tensor(head.bbox_coder.stds)

    def change(outputs: Any) -> Any:
        scores, deltas = outputs
        columns = torch.arange(deltas.shape[1], device=deltas.device)
        label, delta = torch.div(columns, 4, rounding_mode='floor') % 3, columns % 4
        wide, high = (label == 1).expand_as(deltas), (label == 2).expand_as(deltas)
        if head.reg_class_agnostic:
            right, lower = deltas[:, :1] > 0, deltas[:, 1:2] > 0
            wide, high = (right & lower).expand_as(deltas), (right & ~lower).expand_as(deltas)
        chosen = wide & (delta % 2 == 0) | high & (delta % 2 == 1)
        return scores, torch.where(chosen, box.to(deltas).repeat(deltas.shape[1] // 4), deltas)

    return change


class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each of them."""

    name = 'two_stage'
    exports = (
        'two-stage detectors with an rpn_head and a roi_head (mmdeploy_ext/families/two_stage/README.md)'
    )
    near = ('RCNN', 'RPN', 'RoIHead')
    task = 'bbox2d'
    proposes, with_masks = True, False
    forms = ('full', *split.FORMS)
    keep_fp32 = ('proposals/*', 'regions/*', 'paste/*')  # boxes in float16 are half a pixel coarse
    feeds = staticmethod(feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(mmdet_reference.detections)
    candidate_bounds = staticmethod(counted.candidate_bounds)
    followed, replaced = FOLLOWED, staticmethod(replaced_methods)
    inner_inputs, choose_as = staticmethod(reference.inner_inputs), staticmethod(reference.choose_as)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        return (split if options.form in split.FORMS else graphs).spec(model, options)

    def stages(self, model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        return (split if options.form in split.FORMS else graphs).stages(model, options, fold)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        """See `ImageFamily.graphs`: regions are traced with features of their own."""
        (graph,) = super().graphs(model, options)
        if options.form == split.REGIONS:
            graph = dataclasses.replace(graph, example=split.example(model, options))
        return [graph]

    def picture(self, model: nn.Module, options: Options) -> TensorSpec:
        """See `ImageFamily.picture`: regions have none of their own."""
        return graphs.spec(model, options).inputs[0]

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of parts that are not exported are refused by `check`, by the part."""
        two_stage = detector_parts.detects(cfg, KNOWN)
        masks_too = bool(detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head'))
        known = (bool(cfg.model.get('rpn_head')), masks_too) == (self.proposes, self.with_masks)
        return Claim.HEAD if two_stage and known else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, thresholds, sizes."""
        with refused_by_name(cfg):
            check_detector(cfg.model)
            heads = self.heads(cfg)
            if 'rpn_head' in heads:
                proposals.check_head(heads['rpn_head'])
            if 'roi_head' in heads:
                check_roi_head(heads['roi_head'])
                boxes.thresholds(heads['roi_head'].test_cfg)
        detector_parts.check(cfg.model, options)
        if 'rpn_head' in heads:
            strides = proposals.generator_of(heads['rpn_head']).strides
            detector_parts.check_smallest((int(stride[0]) for stride in strides), options)
            caps.check_proposals(heads['rpn_head'], options)
        caps.check(heads, options)
        split.check(heads, options)
        if options.get('paste_masks'):
            pasting.check(mask_settings.threshold(heads['roi_head'].test_cfg), options)

    def heads(self, cfg: Any) -> dict[str, nn.Module]:
        """Return key -> head of those that the config has, of proposals and of regions, without the rest."""
        test_cfg, result = detector_parts.test_cfg_of(cfg), result_key(DETECTORS.get(cfg.model.type))
        return {
            key: detector_parts.tested_head(cfg, key, test_cfg.get(part))
            for key, part in (('rpn_head', 'rpn'), ('roi_head', result))
            if cfg.model.get(key)
        }

    def num_classes(self, model: nn.Module) -> int:
        roi_head = region_maps.roi_head_of(model)
        head = proposals.last_stage(model.rpn_head) if roi_head is None else boxes.last_head(roi_head)
        return int(head.num_classes)

    def results(
        self,
        model: nn.Module,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections]:
        """See `ImageFamily.results`: mmdet's own heads look at the proposals of a file that ends there."""
        if metadata.form != split.PROPOSALS:
            return super().results(model, metadata, outputs, feeds, images, rescale)
        return mmdet_reference.detections(model, images, rescale, reference.outputs_of_first(model, outputs))

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        first = proposals.thresholds(model.rpn_head) if self.proposes else None
        alone = region_maps.roi_head_of(model) is None
        last = first if alone else boxes.thresholds(result_cfg(model))
        found = dict(last.to_json(), num_classes=self.num_classes(model))
        return dict(found, proposals=first.to_json()) if self.proposes else found

    @property
    def first(self) -> str:
        return graphs.PROPOSALS if self.proposes else ''

    def limits(self, model: nn.Module) -> list[Limit]:
        """See `ImageFamily.limits`: those of proposals, which have a list of their own, come first."""
        found = super().limits(model)
        if not self.makes_proposals_first(model):
            return found
        proposals = entries_of(model.rpn_head.test_cfg, 'rpn', graphs.PROPOSALS)
        return proposals + [
            dataclasses.replace(limit, head='rcnn')
            for limit in found
            if not any(map(limit.is_same_entry, proposals))
        ]

    def makes_proposals_first(self, model: nn.Module) -> bool:
        """Return whether a detector makes proposals, and something else of them."""
        return self.proposes and region_maps.roi_head_of(model) is not None

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        """See `ImageFamily.lists`: with the proposals."""
        if not self.makes_proposals_first(model):
            return super().lists(model, images, rescale)
        proposals: list[Detections] = []
        keep = reference.recorded(
            model.rpn_head,
            'simple_test_rpn',
            lambda found, *_: proposals.extend(reference.rows_of_proposals(found)),
        )
        with keep:
            return super().lists(model, images, rescale) | {graphs.PROPOSALS: proposals}

    def first_list(self, model: nn.Module, images: Sequence[PreparedImage]) -> Sequence[Detections]:
        """See `ImageFamily.first_list`: the proposals."""
        return reference.proposals_alone(model, images)

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        """See `ImageFamily.scores_of`: of results without their masks."""
        with reference.without_masks(region_maps.roi_head_of(model)):
            return super().scores_of(model, images, name)

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `ImageFamily.inner_lists`: rows of padding have score 0."""
        proposals = outputs.get(graphs.PROPOSALS)
        if (
            proposals is None or proposals.shape[-1] == 4
        ):  # without scores: an input, or a graph that ends there
            return {}
        (rows,) = (one[one[:, 4] > 0] for one in proposals)
        return {graphs.PROPOSALS: Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """See `ImageFamily.trial`; a graph of regions has no network before it."""
        chain, outputs = self.stages(model, options), self.spec(model, options).outputs
        if options.form == split.REGIONS:
            return chain, outputs
        if options.form == split.PROPOSALS or not self.makes_proposals_first(model):
            return chain[1:], outputs
        return graphs.with_proposals(chain[1:], outputs)

    def first_trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """See `ImageFamily.first_trial`: the proposals."""
        return graphs.proposals_stage(model)

    def network_outputs(
        self, model: nn.Module, options: Options, feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.network_outputs`; a graph of regions is given PyTorch's proposals."""
        if options.form == split.REGIONS:
            return reference.inner_inputs(model, feeds, options.form)
        return super().network_outputs(model, options, feeds)

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        """See `ImageFamily.exaggerated`: proposals, and boxes of regions.

        Of a cascade the last stage alone if all classes have one box: other stages look at what it becomes.
        """
        roi_head = region_maps.roi_head_of(model)
        count = 0 if roi_head is None else stages_of(roi_head)
        with contextlib.ExitStack() as stack:
            if self.proposes:
                stack.enter_context(changed_outputs(model.rpn_head, _exaggerated_proposals(model.rpn_head)))
            for stage in range(count):
                head = part_of(roi_head, 'bbox_head', stage)
                if not getattr(head, 'with_reg', True) or region_boxes.coder_of(head)['type'] != 'delta':
                    continue
                if stage + 1 == count or not getattr(head, 'reg_class_agnostic', True):
                    stack.enter_context(changed_outputs(head, _exaggerated_regions(head)))
            yield

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: proposals have no threshold of their scores."""
        return region_maps.roi_head_of(model) is None

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(result_cfg(model))


class TwoStageMasksFamily(TwoStageFamily):
    """Those that give a mask of every box."""

    name = 'two_stage_masks'
    exports = 'detectors with a mask_head in their roi_head (mmdeploy_ext/families/two_stage/README.md)'
    near = ('MaskRCNN', 'MaskHead')
    task = 'boxed_mask'
    with_masks = True
    trial_rows = 100  # masks take most of the time
    feeds = staticmethod(image_feeds.feeds_with_sizes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(super().postprocess_facts(model), mask_thr=mask_settings.threshold(result_cfg(model)))


class TwoStagePanopticFamily(TwoStageMasksFamily):
    """Those whose instances are laid over a semantic map."""

    name = 'two_stage_panoptic'
    exports = 'Panoptic FPN (mmdeploy_ext/families/two_stage/README.md)'
    near = ('PanopticFPN', 'Panoptic')
    task = 'panoptic'
    forms = ('full', 'raw')
    keep_fp32 = (*TwoStageFamily.keep_fp32, 'fusion/*')
    tie_keys = (*TwoStageFamily.tie_keys, 'score_thr', 'mask_overlap')
    spec, stages = staticmethod(panoptic.spec), staticmethod(panoptic.stages)
    feeds, batches = staticmethod(samples.feeds_with_size), staticmethod(samples.batches_of_one_size)
    reference_detections = staticmethod(reference.segments)
    rounded_choices = staticmethod(panoptic.rounded_choices)

    def limits(self, model: nn.Module) -> list[Limit]:
        """See `ImageFamily.limits`: of proposals, of instances, and of their fusion."""
        fusion = [
            dataclasses.replace(limit, never=panoptic.WHOLE) if limit.key == 'stuff_area_limit' else limit
            for limit in entries_of(model.test_cfg.panoptic, 'panoptic', panoptic.INSTANCES)
        ]
        return entries_of(model.rpn_head.test_cfg, 'rpn', graphs.PROPOSALS) + fusion

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        """See `ImageFamily.lists`: with the instances that are laid over each other."""
        instances: list[Detections] = []

        def keep(result: Any, boxes: Any, labels: Any, *others: Any) -> None:
            rows = boxes.cpu().numpy()
            instances.append(Detections(rows[:, :4], rows[:, 4], labels.cpu().numpy()))

        with reference.recorded(model.panoptic_fusion_head, 'simple_test', keep):
            return super().lists(model, images, rescale) | {panoptic.INSTANCES: instances}

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        """See `ImageFamily.scores_of`: instances are those of the map, so that there are masks."""
        return ImageFamily.scores_of(self, model, images, name)

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if 'dets' not in outputs:
            return super().inner_lists(outputs)
        (boxes,), (labels,) = outputs['dets'], outputs['labels']
        boxes, labels = boxes[labels >= 0], labels[labels >= 0]
        instances = Detections(boxes[:, :4], boxes[:, 4], labels)
        return super().inner_lists(outputs) | {panoptic.INSTANCES: instances}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """See `ImageFamily.trial`: with proposals and instances."""
        chain, outputs = self.stages(model, options), self.spec(model, options).outputs
        missing = [one for one in box_outputs(1, 'n') if one.name not in [known.name for known in outputs]]
        outputs = tuple(one for one in outputs if one.name != panoptic.SEMANTIC)  # the network gives it
        return graphs.with_proposals(chain[1:], (*outputs, *missing))

    def picture(self, model: nn.Module, options: Options) -> TensorSpec:
        return self.spec(model, options).inputs[0]

    def claims(self, cfg: Any) -> Claim:
        return Claim.DETECTOR if detector_parts.detects(cfg, PANOPTIC) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: the parts of the map, too."""
        super().check(cfg, options)
        with refused_by_name(cfg):
            panoptic.check_heads(cfg, self.heads(cfg)['roi_head'])

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`: of things and of stuff."""
        return int(model.panoptic_fusion_head.num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return super().postprocess_facts(model) | panoptic.facts_of(model)


class GivenProposalsFamily(TwoStageFamily):
    """Those that look at regions which they are given."""

    name = 'two_stage_regions'
    exports = 'detectors with a roi_head alone (mmdeploy_ext/families/two_stage/README.md)'
    near = ('FastRCNN',)
    proposes = False
    forms = ('full',)
    feeds = staticmethod(samples.feeds_with_proposals)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        """See `Family.check_dataset`: its samples have the proposals that are looked at."""
        if getattr(dataset, 'proposals', None) is None:
            raise ConfigError(
                f'{cfg.filename}: data.test.proposal_file is missing; {cfg.model.type} looks at proposals '
                f'that it is given'
            )
        if 'proposals' not in dataset[0]:
            raise ConfigError(
                f'{cfg.filename}: data.test.pipeline collects no proposals; expected LoadProposals, and '
                f'proposals in the keys of ToTensor, ToDataContainer and Collect'
            )
