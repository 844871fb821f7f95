"""The family of two-stage detectors: what it claims and refuses, and what the other modules give.

What the other attributes of the classes are for is documented where they are defined first:
`families/base.py` and `families/images.py`, whose head also explains forms, feeds, lists and trials. The list
named 'proposals' holds the proposals that regions are made from, and 'instances' those that are laid over a
semantic map.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.options import Options
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
    mask_heads,
    mmdet_reference,
    pasting,
    proposals,
    regions,
)
from mmdeploy_ext.families.parts.exaggerated import QUADRANT, changed_outputs, exaggerated_cells
from mmdeploy_ext.families.parts.image_tensors import SCORED_PROPOSALS, box_outputs
from mmdeploy_ext.families.parts.regions import last_level_side, part_of, roi_head_of, stages_of
from mmdeploy_ext.families.two_stage import (
    boxes,
    candidate_limits,
    graphs,
    panoptic,
    reference,
    split_graphs,
)
from mmdeploy_ext.families.two_stage.supported_parts import (
    DETECTOR_CLASSES,
    FOLLOWED,
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
    """Return a function that changes the outputs of a head of proposals: the deltas in some cells.

    It takes the outputs and returns those in their place, see `changed_outputs`.
    """
    coder = proposals.facts_of(head)['coder']

    def change(outputs: Any) -> Any:
        scores, deltas, *rest = outputs
        return scores, [exaggerated_cells(level, coder) for level in deltas], *rest

    return change


def _exaggerated_regions(head: nn.Module) -> Callable[[Any], Any]:
    """Return a function that changes outputs of a head of boxes: the widths of some, the heights of others.

    If each class has its own box, every third class has other widths and every third one other heights. If
    all classes share one, the signs of its deltas choose, since regions may have another order in the graph.
    """
    box = torch.tensor(QUADRANT) / torch.tensor(head.bbox_coder.stds)

    def change(outputs: Any) -> Any:
        scores, deltas, *shared = outputs  # SCNet gives the features of its regions besides
        columns = torch.arange(deltas.shape[1], device=deltas.device)
        label, delta = torch.div(columns, 4, rounding_mode='floor') % 3, columns % 4
        if head.reg_class_agnostic:
            right, lower = deltas[:, :1] > 0, deltas[:, 1:2] > 0
            wide, high = right & lower, right & ~lower
        else:
            wide, high = label == 1, label == 2
        changed = (wide & (delta % 2 == 0) | high & (delta % 2 == 1)).expand_as(deltas)
        return scores, torch.where(changed, box.to(deltas).repeat(deltas.shape[1] // 4), deltas), *shared

    return change


class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each of them, or only propose.

    Attributes:
        proposes: whether its detectors have an `rpn_head`; otherwise proposals are an input.
        with_masks: whether their `roi_head` has a `mask_head`.
    """

    name = 'two_stage'
    exports = (
        'two-stage detectors with an rpn_head and a roi_head (mmdeploy_ext/families/two_stage/README.md)'
    )
    similar_names = ('RCNN', 'RPN', 'RoIHead')
    task = 'bbox2d'
    proposes, with_masks = True, False
    forms = ('full', *split_graphs.FORMS)
    feeds = staticmethod(image_feeds.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(mmdet_reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)
    followed, replaced = FOLLOWED, staticmethod(replaced_methods)
    inner_inputs, choose_as = staticmethod(reference.inner_inputs), staticmethod(reference.choose_as)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        """Return the contract of the form of the options: of one graph, or of one of two."""
        if options.form in split_graphs.FORMS:
            return split_graphs.spec(model, options)
        return graphs.spec(model, options)

    def stages(self, model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        """Return the stages of the form of the options.

        With `fold` batch normalisation is folded into convolutions of a copy; without, the model itself runs.
        """
        if options.form in split_graphs.FORMS:
            return split_graphs.stages(model, options, fold)
        return graphs.stages(model, options, fold)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        """Return the one graph of the form; that of regions is traced on seeded features and proposals."""
        (graph,) = super().graphs(model, options)
        if options.form == split_graphs.REGIONS:
            graph = dataclasses.replace(graph, example=split_graphs.example(model, options))
        return [graph]

    def picture(self, model: nn.Module, options: Options) -> TensorSpec:
        """Return the contract of the pictures, also for a graph of regions, which has no such input."""
        return graphs.spec(model, options).inputs[0]

    def claims(self, cfg: Any) -> Claim:
        """Return `HEAD` for detectors of mmdet with the same heads (`proposes`, `with_masks`), else `NO`."""
        if not detector_parts.detects(cfg, DETECTOR_CLASSES):
            return Claim.NO
        has_masks = bool(detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head'))
        parts = bool(cfg.model.get('rpn_head')), has_masks
        return Claim.HEAD if parts == (self.proposes, self.with_masks) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what does not export, before weights load; the heads are built alone.

        Args:
            cfg: the config.
            options: options of the export.

        Raises:
            ConfigError: a head, a part or a setting of one; the message names file and key.
            UsageError: an option that does not fit the model, such as a size or a limit.
        """
        with refused_by_name(cfg):
            check_detector(cfg.model)
            heads = self.heads(cfg)
            if 'rpn_head' in heads:
                proposals.check_head(heads['rpn_head'])
            if 'roi_head' in heads:
                check_roi_head(heads['roi_head'], result_key(DETECTORS.get(cfg.model.type)))
        detector_parts.check(cfg.model, options)
        if 'rpn_head' in heads:
            strides = proposals.generator_of(heads['rpn_head']).strides
            detector_parts.check_smallest((int(stride[0]) for stride in strides), options)
            candidate_limits.check_proposals(heads['rpn_head'], options)
        candidate_limits.check(heads, options)
        split_graphs.check(heads, options)
        if options.get('paste_masks'):
            pasting.check(mask_heads.threshold(heads['roi_head'].test_cfg), options)

    def heads(self, cfg: Any) -> dict[str, nn.Module]:
        """Return key ('rpn_head', 'roi_head') -> live head without weights, of those that the config has.

        ConfigError: one cannot be built.
        """
        test_cfg, result = detector_parts.test_cfg_of(cfg), result_key(DETECTORS.get(cfg.model.type))
        return {
            key: detector_parts.tested_head(cfg, key, test_cfg.get(part))
            for key, part in (('rpn_head', 'rpn'), ('roi_head', result))
            if cfg.model.get(key)
        }

    def num_classes(self, model: nn.Module) -> int:
        """Return the number of classes of the results; proposals alone are of one."""
        roi_head = roi_head_of(model)
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
        """Return the results of each image that a proof compares.

        Of a graph of proposals mmdet's head of regions makes them, from its features and proposals; of others
        the runtime does.

        Args:
            model: the unpatched detector.
            metadata: metadata of the file.
            outputs: outputs of the engine by name.
            feeds: inputs of the graph by name.
            images: the images that the feeds were made of.
            rescale: whether results are in pixels of the originals, not of the network input.
        """
        if metadata.form != split_graphs.PROPOSALS:
            return super().results(model, metadata, outputs, feeds, images, rescale)
        maps_and_proposals = reference.outputs_of_first(model, outputs)
        return mmdet_reference.detections(model, images, rescale, maps_and_proposals)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return name -> setting of the results that files tell, with those of proposals as `proposals`."""
        first = proposals.thresholds(model.rpn_head) if self.proposes else None
        last = first if roi_head_of(model) is None else boxes.thresholds(result_cfg(model))
        facts = dict(last.to_json(), num_classes=self.num_classes(model))
        if self.proposes:
            facts['proposals'] = first.to_json()
        if self.with_masks:
            facts['mask_thr'] = mask_heads.threshold(result_cfg(model))
        return facts

    @property
    def first(self) -> str:
        """Name of the list that results are made from: the proposals; '' if they are an input."""
        return graphs.PROPOSALS if self.proposes else ''

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the limits and thresholds that a detector reads, those of proposals first."""
        limits = super().limits(model)
        if not self.makes_proposals_first(model):
            return limits
        of_proposals = proposals.limits_of_head(model.rpn_head, graphs.PROPOSALS)
        return of_proposals + [
            dataclasses.replace(limit, head='rcnn')
            for limit in limits
            if not any(map(limit.is_same_entry, of_proposals))
        ]

    def makes_proposals_first(self, model: nn.Module) -> bool:
        """Return whether a detector makes proposals, and something else of them."""
        return self.proposes and roi_head_of(model) is not None

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        """Return the results of each image as '', and their proposals by mmdet's test path as 'proposals'.

        With `rescale` results are in pixels of the originals; proposals are in pixels of the network input.
        """
        if not self.makes_proposals_first(model):
            return super().lists(model, images, rescale)
        rows: list[Detections] = []

        def record(result: Sequence[torch.Tensor], *_: Any) -> None:
            rows.extend(reference.rows_of_proposals(result))

        with mmdet_reference.recorded(model.rpn_head, 'simple_test_rpn', record):
            return super().lists(model, images, rescale) | {graphs.PROPOSALS: rows}

    def first_list(self, model: nn.Module, images: Sequence[PreparedImage]) -> Sequence[Detections]:
        """Return the proposals of each image, pixels of the network input, without what follows them."""
        return reference.proposals_alone(model, images)

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        """Return the scores (n,) of the list `name` of the first image, without computing masks."""
        with reference.without_masks(roi_head_of(model)):
            return super().scores_of(model, images, name)

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the proposals among the outputs of a trial of one image, by name; {} if there are none."""
        image_proposals = outputs.get(graphs.PROPOSALS)
        # an input has 4 columns, and so has the output of a graph that ends with it
        if image_proposals is None or image_proposals.shape[-1] == 4:
            return {}
        (rows,) = image_proposals
        rows = rows[rows.any(axis=1)]  # the others are padding; a score may round to 0
        return {graphs.PROPOSALS: Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stages behind the network, if there is one, and their outputs.

        Of a graph that makes proposals and results of them the proposals are an output, too.
        """
        chain, outputs = self.stages(model, options), self.spec(model, options).outputs
        if options.form == split_graphs.REGIONS:  # has no network before it
            return chain, outputs
        if options.form == split_graphs.PROPOSALS or not self.makes_proposals_first(model):
            return chain[1:], outputs
        return graphs.with_proposals(chain[1:], outputs)

    def first_trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stage behind the network that makes proposals alone, and its output."""
        return [graphs.proposals_stage(model)], (SCORED_PROPOSALS,)

    def bytes_per_result(self, model: nn.Module) -> int:
        return boxes.grid_bytes(roi_head_of(model))

    def network_outputs(
        self, model: nn.Module, options: Options, feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return name -> what the stages of `trial` take, by the model's layers, for inputs `feeds`."""
        if options.form == split_graphs.REGIONS:
            return reference.inner_inputs(model, feeds, options.form)
        return super().network_outputs(model, options, feeds)

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        """Inside the block heads of proposals and of regions give some extreme boxes.

        Outputs of layers are changed, for the reference and for a graph that is exported inside. Heads of
        regions that give no deltas stay as they are.
        Of a cascade whose classes share one box only the last stage does: later stages would pool the boxes
        of earlier ones. If masks are pasted into boxes that the last head does not clip, no head does: mmdet
        cannot paste masks outside of the image.
        """
        roi_head = roi_head_of(model)
        count = 0 if roi_head is None else stages_of(roi_head)
        if self.with_masks and not graphs.clips_results(roi_head):
            yield
            return
        with contextlib.ExitStack() as stack:
            if self.proposes:
                stack.enter_context(self.exaggerated_first(model))
            for stage in range(count):
                head = part_of(roi_head, 'bbox_head', stage)
                if not getattr(head, 'with_reg', True) or regions.coder_of(head)['type'] != 'delta':
                    continue
                if stage + 1 == count or not getattr(head, 'reg_class_agnostic', True):
                    stack.enter_context(changed_outputs(head, _exaggerated_regions(head)))
            yield

    def exaggerated_first(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the head of proposals gives some extreme boxes."""
        return changed_outputs(model.rpn_head, _exaggerated_proposals(model.rpn_head))

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        """Return whether a detector pools regions that it finds; those that are an input have all sizes."""
        return self.makes_proposals_first(model)

    def last_level_side(self, model: nn.Module) -> float:
        """Return the side, pixels, from which on squares are pooled from the last level; 0 if all are."""
        return last_level_side(model.roi_head)

    def finds_always(self, model: nn.Module) -> bool:
        """Return True for detectors of proposals alone, which have no threshold of scores."""
        return roi_head_of(model) is None

    def result_limit(self, model: nn.Module) -> ResultLimit:
        """Return the entry that limits the results, of proposals alone by the name that mmdet reads."""
        if roi_head_of(model) is None:
            return ResultLimit(result_cfg(model), proposals.limit_entry(model.rpn_head))
        return ResultLimit(result_cfg(model))


class TwoStageMasksFamily(TwoStageFamily):
    """Two-stage detectors that give a mask of every box."""

    name = 'two_stage_masks'
    exports = 'detectors with a mask_head in their roi_head (mmdeploy_ext/families/two_stage/README.md)'
    similar_names = ('MaskRCNN', 'MaskHead')
    task = 'boxed_mask'
    with_masks = True
    trial_rows = 100  # masks take most of the time
    makes_masks_last = True
    feeds = staticmethod(image_feeds.feeds_with_sizes)

    def without_masks(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model gives boxes alone."""
        return reference.without_masks(roi_head_of(model))


class TwoStagePanopticFamily(TwoStageFamily):
    """Two-stage detectors whose instances are laid over a semantic map."""

    name = 'two_stage_panoptic'
    exports = 'Panoptic FPN (mmdeploy_ext/families/two_stage/README.md)'
    similar_names = ('PanopticFPN', 'Panoptic')
    task = 'panoptic'
    with_masks = True
    trial_rows = TwoStageMasksFamily.trial_rows
    forms = ('full', 'raw')
    tie_keys = (*TwoStageFamily.tie_keys, 'score_thr', 'mask_overlap')
    spec, stages = staticmethod(panoptic.spec), staticmethod(panoptic.stages)
    feeds = staticmethod(panoptic.feeds_with_size)
    batches = staticmethod(panoptic.batches_of_one_size)
    reference_detections = staticmethod(reference.segments)
    rounded_choices = staticmethod(panoptic.rounded_choices)

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the limits and thresholds of proposals, then those of instances and of stuff."""
        limits = proposals.limits_of_head(model.rpn_head, graphs.PROPOSALS)
        for limit in entries_of(model.test_cfg.panoptic, 'panoptic', panoptic.INSTANCES):
            if limit.key == 'stuff_area_limit':
                limit = dataclasses.replace(limit, never=panoptic.LARGEST_AREA)
            limits.append(limit)
        return limits

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        """Return name -> list of each image: the segments as '', 'proposals' and 'instances'.

        `rescale` has no effect: proposals are in pixels of the network input; instances, the boxes that
        mmdet's fusion gets, are in pixels of the originals.
        """
        instances: list[Detections] = []

        def record(result: Any, dets: torch.Tensor, labels: torch.Tensor, *_: Any) -> None:
            rows = dets.cpu().numpy()
            instances.append(Detections(rows[:, :4], rows[:, 4], labels.cpu().numpy()))

        with mmdet_reference.recorded(model.panoptic_fusion_head, 'simple_test', record):
            return super().lists(model, images, rescale) | {panoptic.INSTANCES: instances}

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        """Return the scores (n,) of the list `name` of the first image; masks are made, for the fusion."""
        return ImageFamily.scores_of(self, model, images, name)

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the proposals and instances among the outputs of a trial of one image, by name."""
        if 'dets' not in outputs:
            return super().inner_lists(outputs)
        (dets,), (labels,) = outputs['dets'], outputs['labels']
        dets, labels = dets[labels >= 0], labels[labels >= 0]
        instances = Detections(dets[:, :4], dets[:, 4], labels)
        return super().inner_lists(outputs) | {panoptic.INSTANCES: instances}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stages behind the network, and their outputs, with the instances and the proposals."""
        specs = {tensor.name: tensor for tensor in self.spec(model, options).outputs}
        specs.pop(panoptic.SEMANTIC, None)  # an output of the network
        for tensor in box_outputs(1, 'n'):  # the instances
            specs.setdefault(tensor.name, tensor)
        return graphs.with_proposals(self.stages(model, options)[1:], tuple(specs.values()))

    def picture(self, model: nn.Module, options: Options) -> TensorSpec:
        """Return the contract of the pictures."""
        return self.spec(model, options).inputs[0]

    def claims(self, cfg: Any) -> Claim:
        """Return `DETECTOR` for panoptic two-stage detectors of mmdet, else `NO`."""
        return Claim.DETECTOR if detector_parts.detects(cfg, PANOPTIC) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what `TwoStageFamily` does, and (ConfigError) heads and settings of the fusion."""
        super().check(cfg, options)
        with refused_by_name(cfg):
            panoptic.check_heads(cfg, self.heads(cfg)['roi_head'])

    def num_classes(self, model: nn.Module) -> int:
        """Return the number of classes of things and stuff together."""
        return int(model.panoptic_fusion_head.num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return name -> setting of the instances, the proposals and the fusion that files tell."""
        return super().postprocess_facts(model) | panoptic.facts_of(model)


class GivenProposalsFamily(TwoStageFamily):
    """Two-stage detectors whose proposals are an input."""

    name = 'two_stage_regions'
    exports = 'detectors with a roi_head alone (mmdeploy_ext/families/two_stage/README.md)'
    similar_names = ('FastRCNN',)
    proposes = False
    forms = ('full',)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """Return the inputs of images of one size by name, of which `proposals` (B, K, 4) float32 are one.

        They are xyxy in pixels of the network input; rows that an image does not have are zero. With
        `rescale` there is `scale_factor`, too.
        """
        image_proposals = [image_feeds.proposals_of(image) for image in images]
        return dict(image_feeds.feeds(images, rescale), proposals=reference.stacked(image_proposals))

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        """Refuse (ConfigError) a data set without a file of proposals, or whose pipeline leaves them out."""
        if getattr(dataset, 'proposals', None) is None:
            raise ConfigError(
                f'{cfg.filename}: data.test.proposal_file is missing; {cfg.model.type} looks at proposals '
                f'of a file'
            )
        if 'proposals' not in dataset[0]:
            raise ConfigError(
                f'{cfg.filename}: data.test.pipeline collects no proposals; expected LoadProposals, and '
                f'proposals in the keys of ToTensor, ToDataContainer and Collect'
            )
