"""The layers of one-stage detectors of rotated boxes, from images to the outputs of their last head.

Glossary: B batch, a priors of a cell, H, W network input in pixels, h, w size of a level's maps.
"""

import torch
from torch import nn

from mm2onnx_mmrotate.dense.settings import described, generator_of
from mmdeploy_ext.core.errors import ConfigError


def last_head(model: nn.Module) -> nn.Module:
    """Return the head that gives the results of a detector."""
    return model.bbox_head


def num_levels(model: nn.Module) -> int:
    """Return the number of feature maps that the head takes."""
    return len(generator_of(last_head(model)).strides)


def raw_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the raw outputs: output by output, then level by level."""
    names, levels = described(last_head(model)).names, range(num_levels(model))
    return tuple(f'{name}_{level}' for name in names for level in levels)


def flat_outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs (B, a*columns, h, w) of images (B, 3, H, W), named by `raw_names`.

    ConfigError: there are more or fewer.
    """
    outputs = [maps for levels in model.bbox_head(model.extract_feat(image)) for maps in levels]
    names = raw_names(model)
    if len(outputs) != len(names):
        head = type(last_head(model)).__name__
        raise ConfigError(f'{head}: gives {len(outputs)} tensors, expected {", ".join(names)}')
    return outputs
