"""The family of two-stage detectors: what it claims and refuses, and what the other modules give.

What the other attributes of the classes, and the methods without a docstring, are for is documented where
they are defined first: `families/base.py` and `families/images.py`, whose head also explains forms and feeds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import Graph, GraphSpec, Stage
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.parts import detector_parts, image_graphs
from mmdeploy_ext.families.two_stage import (
    graphs,
    panoptic,
    settings,
    split_graphs,
)
from mmdeploy_ext.families.two_stage.models import TwoStageModels, check_two_stage, heads_of
from mmdeploy_ext.families.two_stage.reference import TwoStagePanopticReference, TwoStageReference, stacked
from mmdeploy_ext.families.two_stage.supported_parts import (
    PANOPTIC,
    UNTRACED,
)
from mmdeploy_ext.preprocess.pictures import PreparedImage


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


@dataclasses.dataclass(eq=False, kw_only=True)
class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each of them, or only propose; instances are below.

    Attributes:
        name: name of the family.
        models: the heads of its detectors, and how such are claimed, checked and built.
        task: name of the module that matches and draws its results, see `Family`.
        forms: how much of the post-processing its graphs may contain.
    """

    name: str
    models: TwoStageModels
    task: str = 'bbox2d'
    forms: tuple[str, ...] = ('full', *split_graphs.FORMS)
    reference = TwoStageReference
    untraced = (*ImageFamily.untraced, *UNTRACED)
    num_classes, facts = staticmethod(settings.num_classes), staticmethod(settings.facts_of)

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
            return image_graphs.feeds_with_sizes(images, rescale)
        feeds = image_graphs.feeds(images, rescale)
        if not self.models.proposes:
            feeds['proposals'] = stacked([image_graphs.proposals_of(image) for image in images])
        return feeds


TWO_STAGE = TwoStageFamily(
    name='two_stage',
    models=TwoStageModels(),
)
TWO_STAGE_MASKS = TwoStageFamily(
    name='two_stage_masks',
    models=TwoStageModels(with_masks=True),
    task='boxed_mask',
)
TWO_STAGE_REGIONS = TwoStageFamily(
    name='two_stage_regions',
    models=TwoStageModels(proposes=False),
    forms=('full',),
)


class TwoStagePanopticFamily(ImageFamily):
    """Two-stage detectors whose instances are laid over a semantic map."""

    name = 'two_stage_panoptic'
    task = 'panoptic'
    forms = ('full', 'raw')
    reference = TwoStagePanopticReference
    untraced = (*ImageFamily.untraced, *UNTRACED)
    spec, stages = staticmethod(panoptic.spec), staticmethod(panoptic.stages)
    feeds = staticmethod(panoptic.feeds_with_size)
    num_classes, facts = staticmethod(settings.num_classes), staticmethod(settings.facts_of)

    def claims(self, cfg: Any) -> Claim:
        """Return `DETECTOR` for panoptic two-stage detectors of mmdet, else `NO`."""
        return Claim.DETECTOR if detector_parts.detects(cfg, PANOPTIC) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what `check_two_stage` does, and (ConfigError) heads and settings of the fusion."""
        check_two_stage(cfg, options)
        with refused_by_name(cfg):
            panoptic.check_heads(cfg, heads_of(cfg)['roi_head'])
