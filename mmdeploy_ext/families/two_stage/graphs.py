"""The graphs of two-stage detectors: contracts and modules.

Glossary: B batch, K proposals of an image, H, W network input in pixels.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.dense_heads import clips
from mmdeploy_ext.families.common.image_graphs import (
    PROPOSALS,
    box_outputs,
    clip_size,
    image_input,
    optional_inputs,
)
from mmdeploy_ext.families.common.mask_heads import judge_of, threshold
from mmdeploy_ext.families.common.pasting import mask_output, size_inputs, with_pasting
from mmdeploy_ext.families.common.proposals import (
    generator_of,
    is_staged,
    output_kinds,
    outputs_of,
    proposals_of,
    smallest_input,
)
from mmdeploy_ext.families.common.regions import (
    feature_names,
    grid_of,
    has_masks,
    part_of,
    region_maps,
    roi_head_of,
    stages_of,
)
from mmdeploy_ext.families.two_stage.boxes import Boxes, Grid, box_borders, thresholds
from mmdeploy_ext.families.two_stage.candidate_limits import rows_of
from mmdeploy_ext.families.two_stage.masks import Masks, mask_borders
from mmdeploy_ext.families.two_stage.supported_parts import result_cfg
from mmdeploy_ext.spec.options import COUNTERS, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

COUNT_MEANINGS = dict(
    candidates='(region, class) pairs above the score threshold; if more than {}, the rest was dropped',
    proposal_candidates='boxes that can be proposals, if there are too few proposals; if more than {}, '
    'the rest was dropped',
)
MASK_NAMES = ('masks', 'mask_scores')


def proposes(model: nn.Module) -> bool:
    return getattr(model, 'rpn_head', None) is not None


def proposal_names(model: nn.Module) -> tuple[str, ...]:
    if not proposes(model):
        return ()
    levels = range(len(generator_of(model.rpn_head).strides))
    return tuple(f'rpn_{kind}_{level}' for kind in output_kinds(model.rpn_head) for level in levels)


def border_names(model: nn.Module) -> tuple[str, ...]:
    roi_head = roi_head_of(model)
    if roi_head is None or not proposes(model):
        return ()
    return PROPOSALS, *box_borders(roi_head), *mask_borders(roi_head)


def network_inputs(model: nn.Module) -> tuple[str, ...]:
    return ('input', 'img_shape') if proposes(model) and is_staged(model.rpn_head) else ('input',)


class TwoStageNetwork(nn.Module):
    """Backbone, neck and the head of proposals with flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = (*feature_names(model), *proposal_names(model))
        self.priors = generator_of(model.rpn_head) if proposes(model) else None

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return the maps of regions, and the outputs of the head of proposals.

        `image` is (B, 3, H, W) normalised; `img_shape` (B, 2) is for a Cascade RPN.
        """
        outputs = self.head_outputs(self.model.extract_feat(image), image, img_shape)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))

    def head_outputs(
        self, maps: tuple[torch.Tensor, ...], image: torch.Tensor, img_shape: torch.Tensor | None
    ) -> list[torch.Tensor]:
        outputs = []
        if proposes(self.model):
            clip_hw = None if img_shape is None else clip_size(image, img_shape)
            outputs = outputs_of(self.model.rpn_head, maps, clip_hw, self.priors)
        return [*region_maps(self.model, maps), *outputs]


class TwoStageFullForm(nn.Module):
    """The form `full`: proposals, regions, results.

    Attributes:
        borders: names of inner tensors that are outputs, too (`border_names`).
    """

    def __init__(
        self, model: nn.Module, max_proposals: int = 0, max_candidates: int = 0, nms_plugin: bool = False
    ) -> None:
        super().__init__()
        self.borders: tuple[str, ...] = ()
        roi_head = roi_head_of(model)
        alone = roi_head is None
        self.proposals = proposals_of(model.rpn_head, alone, max_proposals) if proposes(model) else None
        self.boxes = (
            None if alone else Boxes(roi_head, thresholds(result_cfg(model)), max_candidates, nms_plugin)
        )
        self.grid = Grid(roi_head, bool(max_candidates)) if grid_of(roi_head) is not None else None
        self.masks = Masks(roi_head, bool(max_candidates)) if has_masks(model) else None
        self.features, self.constant = len(feature_names(model)), bool(max_candidates)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the outputs of `spec`, and the tensors of `borders`; proposals (B, K, 5) have scores.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            maps: outputs of `TwoStageNetwork`, behind proposals (B, K, 4) if they are an input.
        """
        clip_hw = clip_size(image, img_shape)
        if self.proposals is None:
            regions, *features = maps
            return self._results(features, regions, with_area(regions), clip_hw, scale_factor)
        features, heads = maps[: self.features], maps[self.features :]
        proposals, levels, *counts = self.proposals(heads, clip_hw)
        if self.boxes is None:
            boxes, scores = proposals[..., :4] / scale_factor[:, None], proposals[..., 4:]
            return tap('dets', torch.cat([boxes, scores], dim=2)), tap('labels', levels.clamp(max=0)), *counts
        inner: list[dict[str, torch.Tensor]] = [{PROPOSALS: proposals}]
        regions = proposals[..., :4], levels >= 0, clip_hw
        results = self._results(features, *regions, scale_factor, inner if self.borders else None)
        tensors = {name: tensor for entry in inner for name, tensor in entry.items()}
        return *results, *counts, *(tensors[name] for name in self.borders)

    def _results(
        self,
        features: Sequence[torch.Tensor],
        proposals: torch.Tensor,
        present: torch.Tensor,
        clip_hw: torch.Tensor,
        scale_factor: torch.Tensor,
        stage_tensors: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        regions = features, proposals, present, clip_hw
        if self.grid is None:
            dets, labels, *counts = self.boxes(*regions, scale_factor, stage_tensors)
        else:
            dets, labels, *counts = self.boxes(*regions, torch.ones_like(scale_factor), stage_tensors)
            (dets,) = self._of_rows(self.grid, features, dets, labels, scale_factor)
        outputs = [tap('dets', dets), tap('labels', labels)]
        if self.masks is not None:
            masks = self._of_rows(self.masks, features, dets, labels, scale_factor, stage_tensors)
            outputs += [tap(name, tensor) for name, tensor in zip(MASK_NAMES, masks, strict=False)]
        return *outputs, *counts

    def _of_rows(
        self,
        head: nn.Module,
        features: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
        *stage_tensors: list[dict[str, torch.Tensor]] | None,
    ) -> tuple[torch.Tensor, ...]:
        if self.constant:
            return head(features, dets, labels, scale_factor, *stage_tensors)
        spare = dets.new_zeros(1, 1, dets.shape[2]).expand(dets.shape[0], -1, -1)
        dets = torch.cat([dets, spare], dim=1)
        labels = torch.cat([labels, torch.full_like(spare[..., 0], -1, dtype=labels.dtype)], dim=1)
        return tuple(tensor[:, :-1] for tensor in head(features, dets, labels, scale_factor, *stage_tensors))


def with_area(boxes: torch.Tensor) -> torch.Tensor:
    """Return (B, K) bool: boxes (B, K, 4) xyxy with x2 > x1 and y2 > y1."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=2)


def clips_proposals(model: nn.Module) -> bool:
    if not proposes(model):
        return False
    head = model.rpn_head
    return any(clips(stage) for stage in (head.stages if is_staged(head) else [head]))


def clips_regions(model: nn.Module) -> bool:
    roi_head = roi_head_of(model)
    if roi_head is None:
        return False
    heads = [part_of(roi_head, 'bbox_head', stage) for stage in range(stages_of(roi_head))]
    return any(clips(head) if getattr(head, 'with_reg', True) else True for head in heads)


def proposals_tensor(batch: int | str) -> TensorSpec:
    meaning = (
        'x1 y1 x2 y2 of region proposals in pixels of the network input; rows without an area are padding'
    )
    return TensorSpec(PROPOSALS, 'float32', (batch, 'K', 4), meaning, 'pixel')


def spec(model: nn.Module, options: Options) -> GraphSpec:
    image = image_input(options, smallest_input(model), detector_parts.multiple(model))
    batch, roi_head = image.axes[0], roi_head_of(model)
    cap = options.get('max_proposals' if roi_head is None else 'max_candidates')
    rows = rows_of(cap, roi_head or model.rpn_head) if cap else 'n'
    outputs = box_outputs(batch, rows)
    if has_masks(model):
        outputs += (mask_output(model, options, batch, rows),)
        if judge_of(roi_head) is not None:
            meaning = 'mask scores: box score times predicted IoU; zero where dets is padding'
            outputs += (TensorSpec(MASK_NAMES[1], 'float32', (batch, rows), meaning, compare='detections'),)
    for option, name in COUNTERS.items():
        if options.get(option):
            meaning = COUNT_MEANINGS[name].format(options[option])
            outputs += (TensorSpec(name, 'int64', (batch,), meaning, compare='detections'),)
    clipped = clips_proposals(model) or clips_regions(model)
    inputs = (image, *optional_inputs(batch, clipped), *size_inputs(options, batch))
    if not proposes(model):
        inputs += (proposals_tensor(batch),)
    return GraphSpec(f'two_stage/{options.form}', inputs, outputs)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    network = TwoStageNetwork(model)
    limits = options.get('max_proposals', 0), options.get('max_candidates', 0)
    form = TwoStageFullForm(model, *limits, options.get('nms_plugin', False))
    inputs = ('input', 'img_shape', 'scale_factor')
    inputs += network.names if proposes(model) else (PROPOSALS, *network.names)
    outputs = tuple(spec(model, options).output_names)
    form.borders = border_names(model)
    outputs += form.borders
    chain = [
        Stage('network', network, network_inputs(model), network.names),
        Stage('regions', form, inputs, outputs),
    ]
    return with_pasting(chain, options, threshold(result_cfg(model))) if has_masks(model) else chain
