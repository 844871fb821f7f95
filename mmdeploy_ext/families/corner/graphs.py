"""The graph of detectors of corners: its contract, and the chain of modules that keeps it."""

import torch
from torch import nn

import mmdeploy_ext.exporting.ops.replaced_modules  # noqa: F401 - what CornerPool becomes
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.corner.postprocess import FULL_NAMES, FullForm, corner_maps, thresholds
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.image_tensors import box_outputs, image_input, optional_inputs

STRIDE = 4
"""Stride of the maps of an hourglass, pixels."""
MAP_NAMES = ('tl_heat', 'tl_off', 'tl_pair', 'br_heat', 'br_off', 'br_pair')


class Network(nn.Module):
    """Backbone and head of mmdet's detector behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of corners of (B, 3, H, W) float32 normalised images."""
        maps = corner_maps(self.model.bbox_head, self.model.extract_feat(image))
        return tuple(tap(name, tensor) for name, tensor in zip(MAP_NAMES, maps, strict=True))


def smallest(model: nn.Module) -> int:
    """Return the smallest side of an input, pixels: a square of it has as many cells as there are corners."""
    cells = -(-int(thresholds(model.bbox_head.test_cfg)['corner_topk']) // int(model.bbox_head.num_classes))
    side = next(side for side in range(1, cells + 1) if side * side >= cells)
    return max(detector_parts.smallest(model.bbox_head, STRIDE), (side - 1) * STRIDE + 1)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the graph."""
    image = image_input(options, smallest(model), detector_parts.multiple(model), 'all around')
    batch, rows = image.axes[0], int(thresholds(model.bbox_head.test_cfg)['max_per_img'])
    inputs = (image, *optional_inputs(batch, False, True))
    return GraphSpec('corner/full', inputs, box_outputs(batch, rows))


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and the post-processing after it."""
    inputs = ('input', 'scale_factor', 'border', *MAP_NAMES)
    return [
        Stage('network', Network(fuse(model) if fold else model), ('input',), MAP_NAMES),
        Stage('postprocess', FullForm(model.bbox_head), inputs, FULL_NAMES),
    ]
