"""The graphs of two-stage detectors: their contracts, and the chain of modules that keeps them.

Glossary: B batch, H, W network input in pixels, n detections, L levels.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.dense_heads import clips
from mmdeploy_ext.families.parts.image_tensors import box_outputs, clip_size, image_input, optional_inputs
from mmdeploy_ext.families.parts.mask_logits import judge_of
from mmdeploy_ext.families.parts.mask_settings import threshold
from mmdeploy_ext.families.parts.pasting import mask_output, size_inputs, with_pasting
from mmdeploy_ext.families.parts.priors import same_priors
from mmdeploy_ext.families.parts.region_maps import (
    feature_names,
    grid_of,
    has_masks,
    region_maps,
    roi_head_of,
)
from mmdeploy_ext.families.parts.regions import part_of, stages_of
from mmdeploy_ext.families.two_stage.boxes import Boxes, thresholds
from mmdeploy_ext.families.two_stage.caps import COUNTS, rows_of
from mmdeploy_ext.families.two_stage.grid import Grid
from mmdeploy_ext.families.two_stage.kinds import result_cfg
from mmdeploy_ext.families.two_stage.masks import Masks
from mmdeploy_ext.families.two_stage.proposals import (
    generator_of,
    is_staged,
    output_kinds,
    outputs_of,
    proposals_of,
    smallest_input,
)

MASK_NAMES = ('masks', 'mask_scores')
"""Outputs of mask heads; the second where a head judges masks."""


def proposes(model: nn.Module) -> bool:
    """Return whether a detector finds its proposals; otherwise they are an input."""
    return getattr(model, 'rpn_head', None) is not None


def proposal_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the outputs of the head of proposals: by kind, then by level; none without one."""
    if not proposes(model):
        return ()
    levels = range(len(generator_of(model.rpn_head).strides))
    return tuple(f'rpn_{kind}_{level}' for kind in output_kinds(model.rpn_head) for level in levels)


class Network(nn.Module):
    """Backbone, neck and the head of proposals behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = (*feature_names(model), *proposal_names(model))
        self.priors = same_priors(generator_of(model.rpn_head)) if proposes(model) else None

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return the maps that regions are pooled from, and the outputs of the head of proposals.

        Of images (B, 3, H, W); `img_shape` (B, 2), see `FullForm`, where stages refine anchors.
        """
        found = self.found(self.model.extract_feat(image), image, img_shape)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, found, strict=True))

    def found(
        self, maps: tuple[torch.Tensor, ...], image: torch.Tensor, img_shape: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Return what the heads give of the maps of all levels."""
        found = []
        if proposes(self.model):
            clip_hw = None if img_shape is None else clip_size(image, img_shape)
            found = outputs_of(self.model.rpn_head, maps, clip_hw, self.priors)
        return [*region_maps(self.model, maps), *found]


class FullForm(nn.Module):
    """What the `full` form adds to the network: proposals, regions, results."""

    def __init__(self, model: nn.Module, max_proposals: int = 0, max_candidates: int = 0) -> None:
        """Keep the heads of regions, and the settings of all post-processing; see `Suppression.cap`."""
        super().__init__()
        self.shows_proposals = False
        roi_head = roi_head_of(model)
        alone = roi_head is None
        self.proposals = proposals_of(model.rpn_head, alone, max_proposals) if proposes(model) else None
        self.boxes = None if alone else Boxes(roi_head, thresholds(result_cfg(model)), max_candidates)
        self.grid = Grid(roi_head, bool(max_candidates)) if grid_of(roi_head) is not None else None
        self.masks = Masks(roi_head, bool(max_candidates)) if has_masks(model) else None
        self.features, self.constant = len(feature_names(model)), bool(max_candidates)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Find proposals and look at their regions; return what `full_names` names.

        `maps` are what `Network` gives, and before it proposals (B, K, 4) where the model finds none; for the
        other inputs see `dense.forms.FullForm`. Where proposals are shown they come last, (B, K, 5) with
        scores.
        """
        clip_hw = clip_size(image, img_shape)
        if self.proposals is None:
            given, *features = maps
            return self._results(features, given, with_area(given), clip_hw, scale_factor)
        features, heads = maps[: self.features], maps[self.features :]
        proposals, levels, *count = self.proposals(heads, clip_hw)
        if self.boxes is None:
            boxes, scores = proposals[..., :4] / scale_factor[:, None], proposals[..., 4:]
            return tap('dets', torch.cat([boxes, scores], dim=2)), tap('labels', levels.clamp(max=0)), *count
        results = self._results(features, proposals[..., :4], levels >= 0, clip_hw, scale_factor)
        return *results, *count, *((proposals,) if self.shows_proposals else ())

    def _results(
        self,
        features: Sequence[torch.Tensor],
        proposals: torch.Tensor,
        present: torch.Tensor,
        *sizes: torch.Tensor,
        seen: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Look at regions; `sizes` are what boxes are clipped to and divided by, for `seen` see `Boxes`."""
        if self.grid is None:
            dets, labels, *count = self.boxes(features, proposals, present, *sizes, seen=seen)
        else:
            clip_hw, scale = sizes
            dets, labels, *count = self.boxes(features, proposals, present, clip_hw, torch.ones_like(scale))
            (dets,) = self._of_rows(self.grid, features, dets, labels, scale)
        found = [tap('dets', dets), tap('labels', labels)]
        if self.masks is not None:
            every = self._of_rows(self.masks, features, dets, labels, sizes[1])
            found += [tap(name, one) for name, one in zip(MASK_NAMES, every, strict=False)]
        return *found, *count

    def _of_rows(
        self,
        head: nn.Module,
        features: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return what a head gives for detections and one row of padding, which is dropped from the result.

        So no head sees zero rows: ONNX's Reshape reads a size of 0 as that of its input.
        """
        if self.constant:
            return head(features, dets, labels, scale_factor)
        spare = dets.new_zeros(1, 1, dets.shape[2]).expand(dets.shape[0], -1, -1)
        dets = torch.cat([dets, spare], dim=1)
        labels = torch.cat([labels, torch.full_like(spare[..., 0], -1, dtype=labels.dtype)], dim=1)
        return tuple(one[:, :-1] for one in head(features, dets, labels, scale_factor))


def with_area(boxes: torch.Tensor) -> torch.Tensor:
    """Return which of given proposals (B, K, 4) are some: (B, K) bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=2)


def clips_proposals(model: nn.Module) -> bool:
    """Return whether a head of proposals clips boxes to the image, in any of its stages."""
    if not proposes(model):
        return False
    head = model.rpn_head
    return any(clips(stage) for stage in (head.stages if is_staged(head) else [head]))


def clips_regions(model: nn.Module) -> bool:
    """Return whether a head of regions clips boxes to the image; one that moves no box clips regions."""
    roi_head = roi_head_of(model)
    if roi_head is None:
        return False
    heads = [part_of(roi_head, 'bbox_head', stage) for stage in range(stages_of(roi_head))]
    return any(clips(head) if getattr(head, 'with_reg', True) else True for head in heads)


def mask_names(model: nn.Module) -> tuple[str, ...]:
    """Return the outputs of the mask heads of a detector that has some."""
    return MASK_NAMES if judge_of(roi_head_of(model)) is not None else MASK_NAMES[:1]


def full_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    """Return the outputs of the `full` form."""
    masks = mask_names(model) if has_masks(model) else ()
    counts = [name for name, option in COUNTS.items() if options.get(option)]
    return ('dets', 'labels', *masks, *counts)


def _count_outputs(model: nn.Module, options: Options, batch: int | str) -> tuple[TensorSpec, ...]:
    """Return the specs of those of `COUNTS` that a file has."""
    meanings = dict(
        candidates='(region, class) pairs over the score threshold; more than {}: the rest was cut off',
        proposal_candidates='boxes that could be proposals, where some are lacking; more than {}: the rest '
        'was cut off',
    )
    return tuple(
        TensorSpec(name, 'int64', (batch,), meanings[name].format(options[option]), compare='detections')
        for name, option in COUNTS.items()
        if options.get(option)
    )


def _rows(model: nn.Module, options: Options) -> int | str:
    """Return how many results a file has per image."""
    roi_head = roi_head_of(model)
    cap = options.get('max_proposals' if roi_head is None else 'max_candidates')
    return rows_of(cap, roi_head or model.rpn_head) if cap else 'n'


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of a form."""
    image = image_input(options, smallest_input(model), detector_parts.multiple(model))
    batch = image.axes[0]
    rows = _rows(model, options)
    outputs = box_outputs(batch, rows)
    if has_masks(model):
        outputs += (mask_output(model, options, batch, rows),)
        if MASK_NAMES[1] in mask_names(model):
            meaning = 'scores of the masks: of the box times the predicted IoU; zero where dets is padding'
            outputs += (TensorSpec(MASK_NAMES[1], 'float32', (batch, rows), meaning, compare='detections'),)
    outputs += _count_outputs(model, options, batch)
    clipped = clips_proposals(model) or clips_regions(model)
    inputs = (image, *optional_inputs(batch, clipped))
    inputs += size_inputs(options, batch)
    if not proposes(model):
        meaning = 'x1 y1 x2 y2 of regions to look at, pixels of the network input; without an area: none'
        inputs += (TensorSpec('proposals', 'float32', (batch, 'K', 4), meaning, 'pixel'),)
    return GraphSpec(f'two_stage/{options.form}', inputs, outputs)


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and what the form adds to it."""
    own = fuse(model) if fold else model
    network, given = Network(own), () if proposes(model) else ('proposals',)
    form = FullForm(own, options.get('max_proposals', 0), options.get('max_candidates', 0))
    first = ('input', 'img_shape') if proposes(model) and is_staged(model.rpn_head) else ('input',)
    inputs, names = ('input', 'img_shape', 'scale_factor', *given, *network.names), full_names(model, options)
    found = [Stage('network', network, first, network.names), Stage('regions', form, inputs, names)]
    return with_pasting(found, options, threshold(result_cfg(model))) if has_masks(model) else found


PROPOSALS = 'proposals'
SCORED = TensorSpec(
    PROPOSALS,
    'float32',
    (1, 'K', 5),
    'x1 y1 x2 y2 score; rows that an image does not have are zero',
    compare='detections',
)
"""The list of boxes that the results are made from, as a proof compares it."""


def with_proposals(
    chain: list[Stage], outputs: tuple[TensorSpec, ...]
) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
    """Return stages behind the network and all their outputs; the first one gives its proposals, too."""
    regions, *others = chain
    regions.module.shows_proposals = True
    regions = dataclasses.replace(regions, outputs=(*regions.outputs, PROPOSALS))
    return [regions, *others], (*outputs, SCORED)


class ScoredProposals(nn.Module):
    """What makes proposals of the outputs of the network, alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.proposals = proposals_of(model.rpn_head)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return proposals with scores (B, K, 5); see `FullForm.forward`."""
        return (self.proposals(maps, clip_size(image, img_shape))[0],)


def proposals_stage(model: nn.Module) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
    """Return the stage that makes proposals alone, and its output."""
    inputs = ('input', 'img_shape', *proposal_names(model))
    return [Stage(PROPOSALS, ScoredProposals(model), inputs, (PROPOSALS,))], (SCORED,)
