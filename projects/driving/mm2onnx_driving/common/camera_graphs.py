"""Pictures to feature maps in the graphs of detectors of cameras, on the layers of the live model.

Glossary: N cameras, C channels, h, w feature map, H, W network input in pixels.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.traced_inputs import with_examples
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.results import widened
from mmdeploy_ext.spec.tensors import Graph, GraphSpec


def camera_graphs(
    model: nn.Module, options: Options, parts: Sequence[tuple[str, nn.Module, GraphSpec]]
) -> list[Graph]:
    """Return graphs of (name, module, contract); outputs get the tolerances of the precision."""
    widened_parts = []
    for name, module, spec in parts:
        outputs = (
            dataclasses.replace(tensor, groups=widened(tensor.groups, options.precision))
            for tensor in spec.outputs
        )
        widened_parts.append((name, module, dataclasses.replace(spec, outputs=tuple(outputs))))
    return with_examples(model, widened_parts)


def feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the feature maps (N, C, h, w) of each level."""
    maps = model.img_backbone(images)
    maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
    neck = getattr(model, 'img_neck', None)
    return maps if neck is None else list(neck(maps))


def map_shapes(model: nn.Module, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return (C, h, w) of each level, by running the network once."""
    with torch.no_grad():
        picture = next(model.parameters()).new_zeros((1, 3, height, width))
        return tuple(tuple(level.shape[1:]) for level in feature_maps(model, picture))
