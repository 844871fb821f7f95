"""Regions pooled from maps of a pyramid, each on its own level: mmcv's RoIAlign as ONNX's RoiAlign.

Glossary: B batch, C channels, H, W size of a level's map, R regions, h, w size of a pooled region.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import RoIAlign, roi_align

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.graphs.script import Body
from mmdeploy_ext.upstream.operators.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register


def _eager(
    pooled: torch.Tensor,
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    level: int,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    mode: str,
) -> torch.Tensor:
    rows = torch.nonzero(levels == level).squeeze(1)
    regions = torch.cat([images[rows, None].to(boxes.dtype), boxes[rows]], dim=1)
    values = roi_align(  # whose kernel reads maps as if they were contiguous
        maps.contiguous(), regions, (height, width), scale, sampling_ratio, 'avg', mode == 'half_pixel'
    )
    return pooled.index_copy(0, rows, values)


def _body(constant: bool) -> Body:
    def level_regions(op: Any) -> Callable[..., Any]:
        def body(
            pooled,
            maps,
            boxes,
            images,
            levels,
            level: int,
            scale: float,
            height: int,
            width: int,
            sampling_ratio: int,
            mode: str,
        ):
            here = levels == op.Constant(value_int=level)
            if constant:
                own_boxes = op.Where(op.Unsqueeze(here, [1]), boxes, 0.0)
                own_images = op.Identity(images)
            else:
                rows = op.Squeeze(op.NonZero(here), [0])
                # OpenVINO needs the four columns when it compiles, and cannot infer them behind the Gather
                own_boxes = op.Reshape(op.Gather(boxes, rows, axis=0), [-1, 4])
                own_images = op.Gather(images, rows, axis=0)
            values = op.RoiAlign(
                maps,
                own_boxes,
                own_images,
                mode='avg',
                coordinate_transformation_mode=mode,
                output_height=height,
                output_width=width,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
            if constant:
                filled = op.Where(op.Unsqueeze(here, [1, 2, 3]), values, pooled)
            else:
                filled = op.ScatterND(pooled, op.Unsqueeze(rows, [-1]), values)
            return filled

        return body

    return level_regions


LEVEL_REGIONS, CONSTANT_LEVEL_REGIONS = (
    register(
        Operator(
            name,
            _eager,
            inputs=dict(pooled='R C h w', maps='B C H W', boxes='R 4', images='R', levels='R'),
            outputs=('filled',),
            example=lambda: (
                torch.zeros(2, 3, 7, 7),
                torch.rand(1, 3, 16, 16),
                torch.tensor([[0.0, 0.0, 30.0, 20.0], [4.0, 4.0, 60.0, 60.0]]),
                torch.tensor([0, 0]),
                torch.tensor([0, 1]),
            ),
            shapes=lambda pooled, *_: torch.empty_like(pooled),
            body=_body(constant),
        )
    )
    for name, constant in (('LevelRegions', False), ('ConstantLevelRegions', True))
)
"""`pool_level`'s operators; the second keeps all shapes constant."""


def pool_level(
    pooled: torch.Tensor,
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    level: int,
    layer: RoIAlign,
    constant: bool = False,
) -> torch.Tensor:
    """Return a copy of `pooled` with the regions of one level filled in.

    Args:
        pooled: (R, C, h, w) float32.
        maps: (B, C, H, W) float32, features of the level.
        boxes: (R, 4) float32 xyxy, pixels of the network input.
        images: (R,) int64 index into the batch.
        levels: (R,) int64, the level of each region from 0 on.
        level: pools regions with this entry of `levels`.
        layer: output size, scale, sampling ratio and `aligned` are used.
        constant: keep every shape constant; else some depend on the level's number of regions.
    """
    mode = 'half_pixel' if layer.aligned else 'output_half_pixel'
    height, width = layer.output_size
    ratio = max(int(layer.sampling_ratio), 0)  # mmcv takes a negative one, which ONNX has not, for adaptive
    settings = level, float(layer.spatial_scale), height, width, ratio, mode
    pool = CONSTANT_LEVEL_REGIONS if constant else LEVEL_REGIONS
    return pool(pooled, maps, boxes, images, levels, *settings)


def check_layer(layer: torch.nn.Module) -> None:
    """Raise ConfigError, with the setting, for a layer that ONNX's RoiAlign does not compute."""
    if not isinstance(layer, RoIAlign):
        raise ConfigError(f'roi_layer.type={type(layer).__name__}; only RoIAlign is supported')
    if layer.pool_mode != 'avg' or layer.use_torchvision:
        raise ConfigError(
            f'roi_layer has pool_mode={layer.pool_mode!r} and use_torchvision={layer.use_torchvision}; '
            "only pool_mode='avg' and mmcv's own kernel are supported"
        )


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('RoIAlign', 'RoiAlign with half_pixel'),
        # the first whose RoiAlign has a coordinate mode, which all graphs state; a lower one is refused
        opset=16,
        types=('RoIAlign',),
    )
)
