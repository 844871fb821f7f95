"""From pictures to feature maps in the graphs of detectors of cameras, on the layers of the live model.

Glossary: N cameras, C channels, h, w feature map, H, W network input in pixels.
"""

import torch
from torch import Tensor, nn


def feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the feature maps (N, C, h, w) of each level, of normalised pictures (N, 3, H, W).

    The backbone may give a dict or a sequence of maps; a model without a neck has those of its backbone.
    """
    maps = model.img_backbone(images)
    maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
    neck = getattr(model, 'img_neck', None)
    return maps if neck is None else list(neck(maps))


def map_shapes(model: nn.Module, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return (C, h, w) of each level for pictures of H x W pixels, by running the network once."""
    with torch.no_grad():
        picture = next(model.parameters()).new_zeros((1, 3, height, width))
        return tuple(tuple(level.shape[1:]) for level in feature_maps(model, picture))
