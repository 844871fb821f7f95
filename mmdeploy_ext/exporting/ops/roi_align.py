"""Regions pooled from maps of a pyramid, each on its own level: mmcv's RoIAlign as ONNX's RoiAlign.

mmcv's exporter pools every region on every level with an operator of mmcv, and keeps the rows of one level.
Here each level pools only its own regions and writes them into their rows, so that no region is pooled twice.
If every shape has to be constant, a level pools as many regions as there are, and regions of other levels are
replaced by a box of no size at (0, 0): with an adaptive sampling ratio each of its bins takes one sample or
none. Measured: `half_pixel` equals mmcv's `aligned=True`, and `output_half_pixel` its `aligned=False`, on the
CPU to the bit, with sampling ratios of 0 (adaptive) and 2.

Glossary: B batch, C channels, H, W size of a level's map, R regions, h, w size of a pooled region.
"""

import torch
from mmcv.ops import RoIAlign, roi_align

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register


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


TEXT = """
        {name} <level, scale, height, width, sampling_ratio, mode>
            (pooled, maps, boxes, images, levels) => (filled) {{
            own = Constant <value_int: int = @level> ()
            here = Equal (levels, own)
            {choose}
            values = RoiAlign <mode = "avg", coordinate_transformation_mode: string = @mode,
                output_height: int = @height, output_width: int = @width,
                sampling_ratio: int = @sampling_ratio, spatial_scale: float = @scale>
                (maps, own_boxes, own_images)
            {put}
        }}"""
TEXTS = dict(
    LevelRegions=dict(
        choose="""found = NonZero (here)
            first = Constant <value = int64[1] {0}> ()
            last = Constant <value = int64[1] {-1}> ()
            rows = Squeeze (found, first)
            picked = Gather <axis = 0> (boxes, rows)
            four = Constant <value = int64[2] {-1, 4}> ()
            own_boxes = Reshape (picked, four)
            own_images = Gather <axis = 0> (images, rows)""",
        put="""places = Unsqueeze (rows, last)
            filled = ScatterND (pooled, places, values)""",
    ),
    ConstantLevelRegions=dict(
        choose="""point = Constant <value = float {0}> ()
            one = Constant <value = int64[1] {1}> ()
            many = Constant <value = int64[3] {1, 2, 3}> ()
            here_boxes = Unsqueeze (here, one)
            own_boxes = Where (here_boxes, boxes, point)
            own_images = Identity (images)""",
        put="""here_values = Unsqueeze (here, many)
            filled = Where (here_values, values, pooled)""",
    ),
)
"""Operator -> the ONNX text that chooses the regions of a level, and that puts pooled values into place.

OpenVINO needs the four columns of boxes when it compiles, and cannot infer them behind a Gather of computed
boxes: hence the Reshape.
"""
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
            body=TEXT.format(name=name, **parts),
        )
    )
    for name, parts in TEXTS.items()
)
"""The operators of `pool_level`; the second keeps all shapes constant. They take its tensors, then the level,
scale, height and width of a pooled region, the sampling ratio (0: adaptive), and ONNX's name of the
coordinate mode."""


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
        pooled: (R, C, h, w) float32; rows of other levels stay as they are.
        maps: (B, C, H, W) float32, features of the level.
        boxes: (R, 4) float32 xyxy, pixels of the network input.
        images: (R,) int64 index into the batch.
        levels: (R,) int64, the level of each region, from 0 on; 0 for all if every region is pooled on every
            level.
        level: regions whose entry of `levels` equals it are pooled.
        layer: mmcv's layer, whose output size, scale, sampling ratio and `aligned` are used.
        constant: whether every shape of the graph has to be constant; otherwise some are the number of
            regions of the level.
    """
    mode = 'half_pixel' if layer.aligned else 'output_half_pixel'
    height, width = layer.output_size
    ratio = max(int(layer.sampling_ratio), 0)  # mmcv takes a negative one, which ONNX has not, for adaptive
    settings = level, float(layer.spatial_scale), height, width, ratio, mode
    pool = CONSTANT_LEVEL_REGIONS if constant else LEVEL_REGIONS
    return pool(pooled, maps, boxes, images, levels, *settings)


def check_layer(layer: torch.nn.Module) -> None:
    """Refuse a layer that ONNX's RoiAlign does not compute; the ConfigError names the setting."""
    if not isinstance(layer, RoIAlign):
        raise ConfigError(f'roi_layer.type={type(layer).__name__}; regions export with RoIAlign')
    if layer.pool_mode != 'avg' or layer.use_torchvision:
        raise ConfigError(
            f'roi_layer has pool_mode={layer.pool_mode!r} and use_torchvision={layer.use_torchvision}; '
            f"regions export with pool_mode='avg' and mmcv's own kernel"
        )


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('RoIAlign', 'RoiAlign with half_pixel'),
        # the first whose RoiAlign has a coordinate mode, which all graphs state; a lower one is refused
        opset=16,
        types=('RoIAlign',),
    )
)
