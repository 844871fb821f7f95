"""The family of two-stage detectors: what it claims and refuses, and what the other modules give.

What the other attributes of the classes, and the methods without a docstring, are for is documented where
they are defined first: `families/base.py` and `families/images.py`, whose head also explains forms, feeds,
lists and trials. The list named 'proposals' holds the proposals that regions are made from, and 'instances'
those that are laid over a semantic map.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
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
    proposals,
)
from mmdeploy_ext.families.parts.image_tensors import box_outputs
from mmdeploy_ext.families.parts.regions import has_masks, last_level_side, roi_head_of
from mmdeploy_ext.families.two_stage import (
    boxes,
    candidate_limits,
    graphs,
    panoptic,
    reference,
    split_graphs,
)
from mmdeploy_ext.families.two_stage.exaggerated import exaggerated, exaggerated_proposals
from mmdeploy_ext.families.two_stage.models import TwoStageModels, check_two_stage, heads_of
from mmdeploy_ext.families.two_stage.supported_parts import (
    PANOPTIC,
    UNTRACED,
    result_cfg,
)
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections

FEW_ROWS = 100
"""`ImageFamily.trial_rows` of families with masks, which take most of the time."""


def check_given_proposals(cfg: Any, dataset: Any) -> None:
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


def facts_of(model: nn.Module, num_classes: int) -> dict[str, Any]:
    """Return name -> setting of the results that files tell, with those of proposals as `proposals`.

    `num_classes` is the number of classes of the results of the live detector `model`.
    """
    first = proposals.thresholds(model.rpn_head) if graphs.proposes(model) else None
    last = first if roi_head_of(model) is None else boxes.thresholds(result_cfg(model))
    facts = dict(last.to_json(), num_classes=num_classes)
    if first is not None:
        facts['proposals'] = first.to_json()
    if has_masks(model):
        facts['mask_thr'] = mask_heads.threshold(result_cfg(model))
    return facts


@dataclasses.dataclass(eq=False, kw_only=True)
class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each of them, or only propose; instances are below.

    Attributes:
        name: name of the family.
        exports: text on the models that it exports, see `Family`.
        similar_names: words in the names of similar detectors.
        models: the heads of its detectors, and how such are claimed, checked and built.
        task: name of the module that matches and draws its results, see `Family`.
        forms: how much of the post-processing its graphs may contain.
        trial_rows: number of results of a picture for which a trial lowers thresholds, see `ImageFamily`.
        makes_masks_last: whether masks are made of the boxes of results.
    """

    name: str
    exports: str
    similar_names: tuple[str, ...]
    models: TwoStageModels
    task: str = 'bbox2d'
    forms: tuple[str, ...] = ('full', *split_graphs.FORMS)
    trial_rows: int = ImageFamily.trial_rows
    makes_masks_last: bool = False
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(mmdet_reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)
    first_list, inner_lists = staticmethod(reference.proposals_alone), staticmethod(reference.proposals_among)
    first_trial = staticmethod(graphs.first_trial)
    exaggerated_first = staticmethod(exaggerated_proposals)
    untraced = (*ImageFamily.untraced, *UNTRACED)
    inner_inputs, choose_as = staticmethod(reference.inner_inputs), staticmethod(reference.choose_as)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        """Return the contract of the form of the options: of one graph, or of one of two."""
        if options.form in split_graphs.FORMS:
            return split_graphs.spec(model, options)
        return graphs.spec(model, options)

    def stages(self, model: nn.Module, options: Options) -> list[Stage]:
        """Return the stages of the form of the options."""
        if options.form in split_graphs.FORMS:
            return split_graphs.stages(model, options)
        return graphs.stages(model, options)

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
        return self.models.claims(cfg)

    def build(self, cfg: Any) -> nn.Module:
        return self.models.build(cfg)

    def check(self, cfg: Any, options: Options) -> None:
        self.models.check(cfg, options)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        """Refuse (ConfigError) a data set without the proposals of a family that takes them as an input."""
        if not self.models.proposes:
            check_given_proposals(cfg, dataset)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """Return the inputs of images of one size by name, with `scale_factor` if `rescale`.

        A family with masks adds `ori_shape` (B, 2) int64, which not every file takes: height and width of the
        image that masks are pasted into, see `pasted_size`, which is not always the original. If proposals
        are an input, they are `proposals` (B, K, 4) float32, xyxy in pixels of the network input; rows that
        an image does not have are zero.
        """
        if self.models.with_masks:
            return image_feeds.feeds_with_sizes(images, rescale)
        feeds = image_feeds.feeds(images, rescale)
        if not self.models.proposes:
            feeds['proposals'] = reference.stacked([image_feeds.proposals_of(image) for image in images])
        return feeds

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
        return facts_of(model, self.num_classes(model))

    @property
    def first(self) -> str:
        """Name of the list that results are made from, or are: the proposals; '' if they are an input."""
        return graphs.PROPOSALS if self.models.proposes else ''

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
        return self.models.proposes and roi_head_of(model) is not None

    def lists(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> dict[str, Sequence[Any]]:
        """Return the results of each image as '', and their proposals by mmdet's test path as 'proposals'.

        With `rescale` results are in pixels of the originals; proposals are in pixels of the network input.
        """
        if not self.makes_proposals_first(model):
            return super().lists(model, images, rescale)
        with reference.recorded_proposals(model) as rows:
            return super().lists(model, images, rescale) | {graphs.PROPOSALS: rows}

    def scores_of(self, model: nn.Module, images: Sequence[PreparedImage], name: str) -> np.ndarray:
        """Return the scores (n,) of the list `name` of the first image, without computing masks."""
        with reference.without_masks(roi_head_of(model)):
            return super().scores_of(model, images, name)

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stages behind the network, if there is one, and the specs of the file's outputs.

        Of the form 'proposals' some of these are outputs of the network. Of a graph that makes proposals and
        results of them the proposals are an output, too.
        """
        chain, outputs = self.stages(model, options), self.spec(model, options).outputs
        if options.form == split_graphs.REGIONS:  # has no network before it
            return chain, outputs
        if options.form == split_graphs.PROPOSALS or not self.makes_proposals_first(model):
            return chain[1:], outputs
        return graphs.with_proposals(chain[1:], outputs)

    def trial_options(self, model: nn.Module, options: Options) -> Options:
        heads = {
            name: head
            for name in ('rpn_head', 'roi_head')
            if (head := getattr(model, name, None)) is not None
        }
        return candidate_limits.fitting(heads, options)

    def bytes_per_result(self, model: nn.Module) -> int:
        return boxes.grid_bytes(roi_head_of(model))

    def network_outputs(
        self, model: nn.Module, options: Options, feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return name -> what the stages of `trial` take, by the model's layers, for inputs `feeds`."""
        if options.form == split_graphs.REGIONS:
            return reference.inner_inputs(model, feeds, options.form)
        return super().network_outputs(model, options, feeds)

    def exaggerated(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return exaggerated(model)

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        """Return whether a detector pools regions that it finds; those that are an input have all sizes."""
        return self.makes_proposals_first(model)

    def last_level_side(self, model: nn.Module) -> float:
        return last_level_side(model.roi_head)

    def finds_always(self, model: nn.Module) -> bool:
        """Return True for detectors of proposals alone, which have no threshold of scores."""
        return roi_head_of(model) is None

    def result_limit(self, model: nn.Module) -> ResultLimit:
        """Return the entry that limits the results, of proposals alone by the name that mmdet reads."""
        if roi_head_of(model) is None:
            return ResultLimit(result_cfg(model), proposals.limit_entry(model.rpn_head))
        return ResultLimit(result_cfg(model))

    def without_masks(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model gives boxes alone."""
        return reference.without_masks(roi_head_of(model))


TWO_STAGE = TwoStageFamily(
    name='two_stage',
    exports='two-stage detectors with an rpn_head and a roi_head (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('RCNN', 'RPN', 'RoIHead'),
    models=TwoStageModels(),
)
TWO_STAGE_MASKS = TwoStageFamily(
    name='two_stage_masks',
    exports='detectors with a mask_head in their roi_head (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('MaskRCNN', 'MaskHead'),
    models=TwoStageModels(with_masks=True),
    task='boxed_mask',
    trial_rows=FEW_ROWS,
    makes_masks_last=True,
)
TWO_STAGE_REGIONS = TwoStageFamily(
    name='two_stage_regions',
    exports='detectors with a roi_head alone (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('FastRCNN',),
    models=TwoStageModels(proposes=False),
    forms=('full',),
)


class TwoStagePanopticFamily(ImageFamily):
    """Two-stage detectors whose instances are laid over a semantic map."""

    name = 'two_stage_panoptic'
    exports = 'Panoptic FPN (mmdeploy_ext/families/two_stage/README.md)'
    similar_names = ('PanopticFPN', 'Panoptic')
    task = 'panoptic'
    trial_rows = FEW_ROWS
    forms = ('full', 'raw')
    untraced = (*ImageFamily.untraced, *UNTRACED)
    tie_keys = (*ImageFamily.tie_keys, 'score_thr', 'mask_overlap')
    spec, stages = staticmethod(panoptic.spec), staticmethod(panoptic.stages)
    feeds = staticmethod(panoptic.feeds_with_size)
    batches = staticmethod(panoptic.batches_of_one_size)
    reference_detections = staticmethod(reference.segments)
    reference_tensors = staticmethod(reference.tensors)
    first, first_list = graphs.PROPOSALS, staticmethod(reference.proposals_alone)
    first_trial = staticmethod(graphs.first_trial)
    exaggerated_first = staticmethod(exaggerated_proposals)
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

        with (
            reference.recorded_proposals(model) as rows,
            mmdet_reference.recorded(model.panoptic_fusion_head, 'simple_test', record),
        ):
            results = super().lists(model, images, rescale)
        return results | {graphs.PROPOSALS: rows, panoptic.INSTANCES: instances}

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the proposals and instances among the outputs of a trial of one image, by name."""
        lists = reference.proposals_among(outputs)
        if 'dets' not in outputs:
            return lists
        (dets,), (labels,) = outputs['dets'], outputs['labels']
        dets, labels = dets[labels >= 0], labels[labels >= 0]
        instances = Detections(dets[:, :4], dets[:, 4], labels)
        return lists | {panoptic.INSTANCES: instances}

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stages behind the network, and their outputs, with the instances and the proposals."""
        specs = {tensor.name: tensor for tensor in self.spec(model, options).outputs}
        specs.pop(panoptic.SEMANTIC, None)  # an output of the network
        for tensor in box_outputs(1, 'n'):  # the instances
            specs.setdefault(tensor.name, tensor)
        return graphs.with_proposals(self.stages(model, options)[1:], tuple(specs.values()))

    def claims(self, cfg: Any) -> Claim:
        """Return `DETECTOR` for panoptic two-stage detectors of mmdet, else `NO`."""
        return Claim.DETECTOR if detector_parts.detects(cfg, PANOPTIC) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what `check_two_stage` does, and (ConfigError) heads and settings of the fusion."""
        check_two_stage(cfg, options)
        with refused_by_name(cfg):
            panoptic.check_heads(cfg, heads_of(cfg)['roi_head'])

    def num_classes(self, model: nn.Module) -> int:
        """Return the number of classes of things and stuff together."""
        return int(model.panoptic_fusion_head.num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return name -> setting of the instances, the proposals and the fusion that files tell."""
        return facts_of(model, self.num_classes(model)) | panoptic.facts_of(model)

    def bytes_per_result(self, model: nn.Module) -> int:
        return boxes.grid_bytes(roi_head_of(model))

    def exaggerated(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return exaggerated(model)

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        return True

    def last_level_side(self, model: nn.Module) -> float:
        return last_level_side(model.roi_head)

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(result_cfg(model))
