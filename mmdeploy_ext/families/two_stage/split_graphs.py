"""A detector in two graphs: pictures to proposals, regions to results.

Features and proposals, outputs of the first graph, are inputs of the second. For proofs the first also gives
the outputs of its head of proposals, the second the features of regions and the outputs of its heads.
Glossary: B batch, K proposals, H, W network input in pixels.
"""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.common.image_graphs import clip_size
from mmdeploy_ext.families.common.proposals import is_guided, is_staged, proposals_of
from mmdeploy_ext.families.common.regions import context_names, feature_names, grid_of
from mmdeploy_ext.families.two_stage import graphs
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.models.crowddet import MultiInstanceBBoxHead

PROPOSALS, REGIONS = FORMS = ('proposals', 'regions')
MEANINGS = dict(
    features='features for RoI pooling',
    rpn_cls='logits of proposals',
    rpn_reg='deltas of proposals',
    regions='x1 y1 x2 y2 of regions of a later stage',
    region_features='features of regions, input of the box head',
    cls_score='class logits of regions, the background last',
    bbox_pred='box deltas of regions',
    bbox_cls='bucket logits of the sides of regions',
    bbox_reg='offsets in the buckets of the sides of regions',
)
UNITS = dict(rpn_cls='logit', cls_score='logit', bbox_cls='logit', regions='pixel')
SEED = 0


def check(heads: Mapping[str, nn.Module], options: Options) -> None:
    """Raise UsageError for a detector that cannot be split, and for half precision of the second graph.

    Raises ConfigError if proposals may have no area, which the second graph takes for padding.
    """
    if options.form not in FORMS:
        return
    if missing := {'rpn_head', 'roi_head'} - heads.keys():
        raise UsageError(
            f'--postprocess {options.form}: the model has no {missing.pop()} and is a single graph: '
            'use --postprocess full'
        )
    if options.form == REGIONS and options.precision != 'fp32':
        raise UsageError(
            f'--precision {options.precision}: the graph of regions supports float32 only; omit the option'
        )
    rpn_head, roi_head = heads['rpn_head'], heads['roi_head']
    has_pairs = isinstance(roi_head.bbox_head, MultiInstanceBBoxHead)
    if context_names(roi_head) or grid_of(roi_head) is not None or has_pairs:
        raise UsageError(
            f'--postprocess {options.form}: {type(roi_head).__name__}: its results need more than regions '
            'of these levels, are scaled twice, or are pairs: use --postprocess full'
        )
    if is_guided(rpn_head) or is_staged(rpn_head):
        raise UsageError(
            f'--postprocess {options.form}: {type(rpn_head).__name__} is a single graph: use '
            '--postprocess full'
        )
    if proposals_of(rpn_head).smallest < 0:
        size = float(rpn_head.test_cfg.get('min_bbox_size', -1))
        kept = f', with which {type(rpn_head).__name__} keeps them' if size >= 0 else ''
        raise ConfigError(
            f'test_cfg.rpn.min_bbox_size={size:g}{kept}: --postprocess {options.form} treats proposals '
            f'without an area as padding; set {1 if kept else 0} or more, or use --postprocess full'
        )


class ProposalsForm(nn.Module):
    """The end of the first graph: outputs of the head to proposals."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.proposals = proposals_of(model.rpn_head)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return proposals (B, K, 4) xyxy, pixels of the network input, padded with zeros."""
        dets, *_ = self.proposals(maps, clip_size(image, img_shape))
        return (tap(PROPOSALS, dets[..., :4]),)


class RegionsForm(graphs.TwoStageFullForm):
    """The second graph: regions to results, with the tensors behind them."""

    def forward(
        self,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        proposals: torch.Tensor,
        *features: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        results, inner = self.look(features, proposals, img_shape, scale_factor)
        return *results, *inner.values()

    def look(
        self,
        features: Sequence[torch.Tensor],
        proposals: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return the outputs of the `full` form, and name -> inputs and outputs of heads (B, K, ...)."""
        stage_tensors: list[dict[str, torch.Tensor]] = []
        present, rows = graphs.with_area(proposals), proposals.shape[:2]
        results = self._results(features, proposals, present, img_shape, scale_factor, stage_tensors)
        inner = {}
        for tensors in stage_tensors[: len(self.boxes.stages)]:  # behind them are those of masks
            for name, tensor in tensors.items():
                is_map = tensor.dim() == 4
                inner[name] = tensor.reshape(*rows, *tensor.shape[-3 if is_map else -1 :])
        return results, inner


_SHAPES: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[str, tuple[int, ...]]]] = (
    weakref.WeakKeyDictionary()
)
PROBED = 3
"""Number of regions of the run that gives the shapes."""


def shapes(model: nn.Module, options: Options) -> dict[str, tuple[int, ...]]:
    shapes_of_sizes = _SHAPES.setdefault(model, {})
    size = options.height, options.width
    if size not in shapes_of_sizes:
        network, form = graphs.TwoStageNetwork(model), RegionsForm(model).eval()
        like = next(model.parameters())
        try:
            with torch.no_grad():
                tensors = dict(zip(network.names, network(like.new_zeros((1, 3, *size))), strict=True))
        except RuntimeError as error:
            raise UsageError(
                f'--shape {size[0]} {size[1]}: the model does not support this size: {error}'
            ) from error
        features = [tensors[name] for name in feature_names(model)]
        boxes = like.new_tensor([[[0.0, 0.0, 8.0, 8.0]] * PROBED])
        with torch.no_grad():
            tensors |= form.look(features, boxes, like.new_tensor([size]), like.new_ones((1, 4)))[1]
        shapes_of_sizes[size] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes_of_sizes[size]


def inner_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    outside = (*feature_names(model), *graphs.proposal_names(model))
    return tuple(name for name in shapes(model, options) if name not in outside)


def _tensor(name: str, options: Options, shape: Sequence[int], of_regions: bool) -> TensorSpec:
    kind, index = name.rsplit('_', 1)
    batch = 'B' if options.dynamic else options.batch
    axes = (batch, 'K', *shape[2:]) if of_regions else (batch, *shape[1:])
    if options.dynamic and not of_regions:
        axes = (*axes[:2], f'h{index}', f'w{index}')
    meaning = f'{MEANINGS[kind]}, {"stage" if of_regions else "level"} {index}'
    groups = (ColumnGroup(name='xyxy', unit='pixel'),) if UNITS.get(kind) == 'pixel' else ()
    return TensorSpec(name, 'float32', axes, meaning, UNITS.get(kind, ''), groups)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    def tensors(names: Sequence[str], of_regions: bool = False) -> tuple[TensorSpec, ...]:
        shape_of = shapes(model, options)
        return tuple(_tensor(name, options, shape_of[name], of_regions) for name in names)

    full = graphs.spec(model, options)
    image, img_shape, scale_factor = full.inputs
    features = tensors(feature_names(model))
    proposals = graphs.proposals_tensor(image.axes[0])
    if options.form == PROPOSALS:
        inputs = image, dataclasses.replace(img_shape, unused=not graphs.clips_proposals(model))
        scored = dataclasses.replace(proposals, compare='detections')
        outputs = *features, scored, *tensors(graphs.proposal_names(model))
    else:
        meaning = 'height and width before padding; boxes are clipped to it'
        size = dataclasses.replace(
            img_shape, meaning=meaning, default=None, positive=True, unused=not graphs.clips_regions(model)
        )
        inputs = *features, proposals, size, scale_factor
        outputs = *full.outputs, *tensors(inner_names(model, options), of_regions=True)
    return GraphSpec(f'two_stage/{options.form}', inputs, outputs)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    if options.form == REGIONS:
        names = (*graphs.spec(model, options).output_names, *inner_names(model, options))
        inputs = ('img_shape', 'scale_factor', 'proposals', *feature_names(model))
        return [Stage('regions', RegionsForm(model), inputs, names)]
    network = graphs.TwoStageNetwork(model)
    inputs = ('input', 'img_shape', *graphs.proposal_names(model))
    return [
        Stage('network', network, ('input',), network.names),
        Stage('proposals', ProposalsForm(model), inputs, ('proposals',)),
    ]


def example(model: nn.Module, options: Options) -> dict[str, torch.Tensor]:
    shape_of, numbers = shapes(model, options), torch.Generator().manual_seed(SEED)
    features = {
        name: torch.randn((options.batch, *shape_of[name][1:]), generator=numbers)
        for name in feature_names(model)
    }
    size = torch.tensor([[options.height, options.width]] * options.batch, dtype=torch.float32)
    low = torch.rand((options.batch, 40, 2), generator=numbers) * 0.75
    boxes = torch.cat([low, low + 0.05 + 0.2 * torch.rand(low.shape, generator=numbers)], dim=2)
    boxes = boxes * size.flip(1).repeat(1, 2)[:, None]
    return dict(features, proposals=boxes, img_shape=size, scale_factor=torch.ones(options.batch, 4))
