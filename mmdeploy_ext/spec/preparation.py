"""How images and points become a network's input: the rules in a file's metadata.

`preprocess` follows them. H, W network input in pixels, h, w an image; N cameras; D values of a point.
"""

import dataclasses
from typing import Annotated, Literal

import numpy as np

from mmdeploy_ext.base.typed_json import Bounds, JsonDataclass, Mismatch, optional

LARGEST_SIDE = 16384
"""Pixels of a side: OpenCV's resize takes 32766, and a network of this size takes gigabytes."""
Side = Annotated[int, Bounds(1, LARGEST_SIDE)]
Edge = Annotated[int, Bounds(1, 10**6)]
"""Of `img_scale`, where a long one means that the other decides."""
Step = Annotated[int, Bounds(1, 1024)]
"""Pixels that sides become multiples of."""
Colour = Annotated[float, Bounds(-1e6, 1e6)]
Deviation = Annotated[float, Bounds(maximum=1e6, above=0.0)]
WARP = 'warp'
"""`PreprocessRule.resize` of mmdet3d's `AffineResize`."""
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
"""nuScenes' cameras in the order of StreamPETR's info files."""


@dataclasses.dataclass(frozen=True)
class PreprocessRule(JsonDataclass):
    """How an image becomes the network input.

    Attributes:
        mean, std: (pixel - mean) / std, a number per band of the network's input after `to_rgb`.
        to_rgb: swap OpenCV's BGR to RGB before normalising.
        img_scale: (long, short) edge in pixels in either order, as in mmdet's `Resize`; exact (w, h) without
            `keep_ratio` and for warps. None: no resize.
        keep_ratio: keep the aspect ratio.
        size_divisor: pad H and W to multiples, below and right, or all around if `centred`.
        pad_or, pad_more: unless `pad_or` is 0, pad each side to (side | pad_or) + pad_more.
        centred: pad around the middle, rounded down.
        pad_size: (H, W) to pad to instead; larger sides stay.
        size: (H, W) of a graph of fixed shape: resize to fit inside (or exactly, without `keep_ratio`) and
            pad; overrides scale and padding.
        pad_val: padding per band, after normalising as in mmdet.
        resize: bilinear by 'cv2' or 'pillow'; 'warp': OpenCV's affine warp by the ratio of widths about the
            middle, cut or black above and below.
        to_float32: resize in float32 without rounding to 8 bits.
        color_type: mmcv's: 'color', 'grayscale', or 'unchanged': bands and dtype as in the file.
    """

    mean: tuple[Colour, ...] = (0.0, 0.0, 0.0)
    std: tuple[Deviation, ...] = (1.0, 1.0, 1.0)
    to_rgb: bool = True
    img_scale: tuple[Edge, Edge] | None = None
    keep_ratio: bool = True
    size_divisor: Step = 1
    size: tuple[Side, Side] | None = None
    pad_val: tuple[Colour, ...] = (0.0, 0.0, 0.0)
    pad_size: tuple[Side, Side] | None = None
    resize: Literal['cv2', 'pillow', 'warp'] = 'cv2'
    pad_or: Annotated[int, Bounds(0, 1024)] = 0
    pad_more: Annotated[int, Bounds(0, 1024)] = 0
    centred: bool = False
    to_float32: bool = False
    color_type: Literal['color', 'grayscale', 'unchanged'] = optional('color')

    def check(self) -> None:
        edges = self.img_scale or (1, 1)
        longest = min(edges) if self.keep_ratio and self.resize != WARP else max(edges)
        if longest > LARGEST_SIDE:
            raise Mismatch(f'img_scale is {list(edges)}, expected sides of at most {LARGEST_SIDE} pixels')
        if not len(self.mean) == len(self.std) == len(self.pad_val):
            counts = ', '.join(f'{name} {len(getattr(self, name))}' for name in ('mean', 'std', 'pad_val'))
            raise Mismatch(f'number of values: {counts}; expected one per band in each')

    @property
    def bands(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @property
    def picture_bands(self) -> int:
        """Channels of the pictures that `prepare_image` takes; grey ones have three."""
        return self.bands if self.color_type == 'unchanged' else 3

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == WARP:
            return self.size or (self.img_scale[1], self.img_scale[0])
        if self.size is not None:
            if not self.keep_ratio:
                return self.size
            factor = min(self.size[0] / height, self.size[1] / width)
        elif self.img_scale is None:
            return height, width
        elif not self.keep_ratio:
            return self.img_scale[1], self.img_scale[0]
        else:
            factor = min(max(self.img_scale) / max(height, width), min(self.img_scale) / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.pad_size is not None:
            return max(self.pad_size[0], height), max(self.pad_size[1], width)
        if self.pad_or:
            return (height | self.pad_or) + self.pad_more, (width | self.pad_or) + self.pad_more
        return next_multiples((height, width), self.size_divisor)


def next_multiples(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


@dataclasses.dataclass(frozen=True)
class MultiViewRule(JsonDataclass):
    """How the images of one moment become the network input.

    Attributes:
        mean, std: per channel, after `to_rgb`.
        to_rgb: swap OpenCV's BGR to RGB.
        source: (h, w) of every image.
        scale: network pixels per image pixel.
        resized: (h, w) after the resize.
        crop: (top, left) in the resized image; black outside.
        size: (h, w) of the crop.
        size_divisor: zero-pad bottom and right to a multiple, after normalising.
        pad_size: (H, W) to pad to instead.
        num_cameras: N.
        cameras: names in the order of the network input; `CAMERAS` for six, else ().
        normalised_first: normalise, then OpenCV's bilinear resize of float32, no crop; otherwise Pillow's
            bicubic resize, crop, normalise.
    """

    mean: tuple[Colour, Colour, Colour]
    std: tuple[Deviation, Deviation, Deviation]
    to_rgb: bool
    source: tuple[Side, Side]
    scale: Annotated[float, Bounds(above=0.0)]
    resized: tuple[Side, Side]
    crop: tuple[int, int]
    size: tuple[Side, Side]
    size_divisor: Step = 1
    pad_size: tuple[Side, Side] | None = None
    num_cameras: Annotated[int, Bounds(1, 100)] = 6
    cameras: tuple[str, ...] = CAMERAS
    normalised_first: bool = False
    kind: Literal['multiview'] = 'multiview'

    def check(self) -> None:
        for index, side in enumerate(('top', 'left')):
            start, size, resized = self.crop[index], self.size[index], self.resized[index]
            if not -size < start < resized:
                raise Mismatch(f'crop[{index}] is {start}, which leaves nothing of {resized} pixels ({side})')
            if self.pad_size and self.pad_size[index] < size:
                raise Mismatch(f'pad_size[{index}] is {self.pad_size[index]}, expected at least size, {size}')
        if len(self.cameras) not in (0, self.num_cameras):
            count = len(self.cameras)
            raise Mismatch(f'cameras has {count} names, expected num_cameras, {self.num_cameras}')

    @property
    def input_size(self) -> tuple[int, int]:
        return self.pad_size or next_multiples(self.size, self.size_divisor)

    def camera_name(self, index: int) -> str:
        return self.cameras[index] if index < len(self.cameras) else f'camera {index}'

    def crop_matrix(self, size: int = 3) -> np.ndarray:
        """Matrix (size, size) from image pixels to network pixels.

        Size 3 maps (x, y, 1), size 4 (x, y, depth, 1), x and y divided by depth. float32 as in StreamPETR;
        float64 as in BEVFormer if `normalised_first`.
        """
        matrix = np.eye(size, dtype=np.float64 if self.normalised_first else np.float32)
        matrix[[0, 1], [0, 1]] = self.scale
        matrix[:2, -1] = -self.crop[1], -self.crop[0]
        return matrix


@dataclasses.dataclass(frozen=True)
class VoxelRule(JsonDataclass):
    """How points become voxels.

    Attributes:
        point_cloud_range: (x, y, z, x, y, z) lower and upper bounds in metres, LiDAR frame. A point is in
            range if its voxel index is in [0, grid_size), where `grid_size` is rounded.
        voxel_size: (x, y, z) metres.
        max_points: points per voxel; -1 if 'dynamic'.
        max_voxels: later voxels are dropped; -1 if 'dynamic'.
        order: axis order of coordinates, 'xyz' or 'zyx'.
        in_channels: D.
        mode: 'hard' or 'dynamic'.
    """

    point_cloud_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    max_points: int
    max_voxels: int
    order: Literal['xyz', 'zyx']
    in_channels: int
    mode: Literal['hard', 'dynamic'] = 'hard'

    def check(self) -> None:
        if min(self.voxel_size) <= 0:
            raise Mismatch(f'voxel_size is {self.voxel_size}, expected sizes above 0')
        if min(self.grid_size) < 1:
            raise Mismatch(
                f'point_cloud_range is {self.point_cloud_range}, which has no voxel of {self.voxel_size}'
            )
        if self.mode == 'hard' and min(self.max_points, self.max_voxels) < 1:
            raise Mismatch(
                f'max_points, max_voxels are {self.max_points}, {self.max_voxels}; expected numbers above 0, '
                f"or mode='dynamic'"
            )

    @property
    def grid_size(self) -> tuple[int, int, int]:
        low, high = np.array(self.point_cloud_range, np.float32).reshape(2, 3)
        cells = (high - low) / np.array(self.voxel_size, np.float32)
        return tuple(int(count) for count in np.floor(cells + 0.5))  # C's round: halves away from zero


@dataclasses.dataclass(frozen=True)
class FusionRule(JsonDataclass):
    """The rules of both sensors.

    Attributes:
        views: rule of the cameras, or of one picture (MVX-Net); None for LiDAR alone.
        voxels: rule of the points; None for cameras alone.
        load_dim: values per point in a file.
        use_dim: columns that the model takes after merging.
        sweeps: most past sweeps.
        pad_empty_sweeps, remove_close: see `runtime.preprocess.fusion.PastSweeps`.
    """

    views: MultiViewRule | PreprocessRule | None
    voxels: VoxelRule | None
    load_dim: int = 5
    use_dim: tuple[int, ...] = (0, 1, 2, 3, 4)
    sweeps: int = 0
    pad_empty_sweeps: bool = False
    remove_close: bool = False
    kind: Literal['fusion'] = 'fusion'

    def img_aug_matrix(self) -> np.ndarray:
        """(N, 4, 4) equal matrices from camera pixels to network pixels, for (x, y, depth, 1).

        x and y are divided by depth, see `runtime.frames.of_rays`.
        """
        return np.tile(self.views.crop_matrix(4), (self.views.num_cameras, 1, 1))
