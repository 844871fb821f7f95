"""Panoptic FPN: a head of stuff beside the regions, and maps from both.

Source: mmdet 2.28.2 `detectors/panoptic_two_stage_segmentor.py`,
`seg_heads/{base_semantic_head,panoptic_fpn_head}.py` and `panoptic_fusion_heads/heuristic_fusion_head.py`.
Glossary: B batch, n detections of the fullest image, m side of a mask in the frame of the box, S classes of
stuff, H, W network input in pixels, H4, W4 a quarter of it, h, w size of the map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.mask_resize import resizing_of
from mmdeploy_ext.exporting.postprocess.panoptic import InstanceFusion, map_output
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.image_graphs import (
    box_outputs,
    feeds,
    image_input,
    one_size,
    optional_inputs,
    pasted_size,
)
from mmdeploy_ext.families.common.mask_heads import side_of
from mmdeploy_ext.families.common.pasting import Paste
from mmdeploy_ext.families.common.proposals import smallest_input
from mmdeploy_ext.families.common.regions import stages_of
from mmdeploy_ext.families.two_stage import graphs
from mmdeploy_ext.families.two_stage.settings import facts_of
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.building import registered_class

seg_heads = mmdet_module('mmdet.models.seg_heads')

RATIO, MULTIPLE = 4, 32
"""Pixels of the input per pixel of the logits; divisor of the input's sides."""
SEMANTIC = 'semantic_logits'
LARGEST_AREA = 10**9
"""Pixels; no picture has as many."""


def check_heads(cfg: Any, roi_head: nn.Module) -> None:
    for key, upstream in (
        ('semantic_head', seg_heads.PanopticFPNHead),
        ('panoptic_fusion_head', seg_heads.HeuristicFusionHead),
    ):
        name = (cfg.model.get(key) or {}).get('type')
        head = registered_class(HEADS, name)
        if head is None or not issubclass(head, upstream):
            raise ConfigError(f'model.{key}.type={name}: expected {upstream.__name__}')
    if stages_of(roi_head) > 1:
        raise ConfigError(
            f'model.roi_head.type={type(roi_head).__name__}: mmdet supports panoptic detectors with one '
            'region stage only'
        )
    fusion, things = cfg.model.panoptic_fusion_head, int(roi_head.bbox_head.num_classes)
    stuff = cfg.model.semantic_head.get('num_stuff_classes', 53)
    got = fusion.get('num_things_classes', 80), fusion.get('num_stuff_classes', 53)
    if got != (things, stuff):
        raise ConfigError(
            f'model.panoptic_fusion_head has {got[0]} things and {got[1]} stuff classes; expected '
            f'{things} as in bbox_head and {stuff} as in semantic_head'
        )
    settings = detector_parts.test_cfg_of(cfg)['panoptic']
    overlap = settings.get('mask_overlap')
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise ConfigError(f'model.test_cfg.panoptic.mask_overlap={overlap}: expected 0 or more, below 1')
    area = number('panoptic.stuff_area_limit', settings.get('stuff_area_limit'), int)
    if not 0 <= area <= LARGEST_AREA:
        raise ConfigError(
            f'model.test_cfg.panoptic.stuff_area_limit={area}: expected 0 to {LARGEST_AREA} pixels'
        )


class PanopticNetwork(graphs.TwoStageNetwork):
    """Backbone, neck, head of proposals and head of stuff."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.names = (*self.names, SEMANTIC)

    def head_outputs(
        self, maps: tuple[torch.Tensor, ...], image: torch.Tensor, img_shape: torch.Tensor | None
    ) -> list[torch.Tensor]:
        return [*super().head_outputs(maps, image, img_shape), self.model.semantic_head(maps)['seg_preds']]


class RegionMapFullForm(nn.Module):
    """The end of the form `full`: instances and stuff at the original's size, fused into a map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        facts = facts_of(model)
        self.paste, self.fusion = Paste(facts.mask_thr), InstanceFusion(facts)

    def forward(
        self,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        ori_shape: torch.Tensor,
        dets: torch.Tensor,
        labels: torch.Tensor,
        box_masks: torch.Tensor,
        semantic: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        """Return the map (B, h, w) int32, see `postprocess.panoptic`.

        Args:
            img_shape: (B, 2) h, w before padding, pixels of the input; 0: all.
            scale_factor: (B, 4) `w h w h`, input / original.
            ori_shape: (2,) h, w of the map.
            dets: (B, n, 5) boxes xyxy divided by `scale_factor`, and scores, best first.
            labels: (B, n) int64, -1 for padding.
            box_masks: (B, n, m, m) in 0..1, zero for padding.
            semantic: (B, S + 1, H4, W4) logits.
        """
        (masks,) = self.paste(dets, scale_factor, ori_shape[None], box_masks)
        rows, columns = resizing_of(semantic, img_shape, ori_shape, RATIO)
        values = rows[:, None] @ (semantic @ columns.transpose(1, 2)[:, None])
        return (tap('panoptic', self.fusion(masks, labels, values)),)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    step = max(detector_parts.multiple(model), MULTIPLE)
    image = image_input(options, max(step, smallest_input(model)), step)
    batch = image.axes[0]
    inputs = (image, *optional_inputs(batch, clips=True))
    if options.form == 'full':
        meaning = 'height and width of the original images and of the maps'
        original = TensorSpec('ori_shape', 'int64', (2,), meaning, 'pixel', positive=True)
        return GraphSpec('two_stage/full', (*inputs, original), map_output(batch))
    side, columns = side_of(model.roi_head), int(model.panoptic_fusion_head.num_stuff_classes) + 1
    sides = (options.height // RATIO, options.width // RATIO)
    quarter = ('H4', 'W4') if options.dynamic else sides
    masks = 'probabilities for the predicted class, relative to the box; zero where dets is padding'
    stuff = 'logits of stuff; the last class means no stuff'
    return GraphSpec(
        'two_stage/raw',
        inputs,
        (
            *box_outputs(batch, 'n'),
            TensorSpec('masks', 'float32', (batch, 'n', side, side), masks, compare='detections'),
            TensorSpec(SEMANTIC, 'float32', (batch, columns, *quarter), stuff, compare='detections'),
        ),
    )


def stages(model: nn.Module, options: Options) -> list[Stage]:
    network, regions = PanopticNetwork(model), graphs.TwoStageFullForm(model)
    inputs = ('input', 'img_shape', 'scale_factor', *network.names[:-1])
    first = Stage('network', network, graphs.network_inputs(model), network.names)
    regions.borders = graphs.border_names(model)
    if options.form == 'raw':
        outputs = ('dets', 'labels', 'masks', *regions.borders)
        return [first, Stage('regions', regions, inputs, outputs)]
    outputs = ('dets', 'labels', 'box_masks')
    fused = ('img_shape', 'scale_factor', 'ori_shape', *outputs, SEMANTIC)
    return [
        first,
        Stage('regions', regions, inputs, (*outputs, *regions.borders), varying=outputs),
        Stage('fusion', RegionMapFullForm(model), fused, ('panoptic',)),
    ]


def feeds_with_size(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return `image_graphs.feeds`, and `ori_shape` (2,) int64 of all images."""
    sizes = [pasted_size(image, rescale=True) for image in images]
    return dict(feeds(images, rescale=True), ori_shape=one_size(sizes, 'maps'))
