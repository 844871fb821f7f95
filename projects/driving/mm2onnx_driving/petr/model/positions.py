"""Codes of tokens' places: points along their rays, and counts of cameras, rows and columns.

Source: megvii-research/PETR f7525f9, `dense_heads/petr_head.py` (`position_embeding`),
`utils/positional_encoding.py` (`SinePositionalEncoding3D`).
Glossary: N cameras (also of the frame before), h, w feature map, D depth bins.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import POSITIONAL_ENCODING
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor

from mm2onnx_driving.layers.rays import frustum_points, lidar_points, sine_encoding
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

EPSILON = 1e-6


def token_corners(pad_shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the upper left corners (h w, 2) of the cells, x and y in padded pixels."""
    ys, xs = (
        torch.arange(cells).float() * float(pixels) / cells
        for pixels, cells in zip(pad_shape[:2], size, strict=True)
    )
    return torch.stack(torch.meshgrid(xs, ys, indexing='xy'), dim=-1).reshape(-1, 2)


def image_to_lidar(lidar2img: Sequence[np.ndarray]) -> Tensor:
    """Return the inverses (N, 4, 4), float32, each computed in its matrix's precision.

    Upstream has float64 for the present cameras, float32 for the frame before; near the border of the range
    their last bits matter.
    """
    return torch.from_numpy(np.stack([np.linalg.inv(np.asarray(m)).astype(np.float32) for m in lidar2img]))


def ray_codes(
    img2lidar: Tensor, corners: Tensor, depths: Tensor, position_range: Tensor, size: Sequence[int]
) -> Tensor:
    """Return the inverse sigmoids (N, 3 D, h, w) of the tokens' points in `position_range`.

    Args:
        img2lidar: (N, 4, 4), pixels times depth to the LiDAR frame, m.
        corners: (h w, 2) pixels, see `token_corners`.
        depths: (D,) m.
        position_range: x, y, z low, then high, m; points outside count as on its border.
        size: h, w.
    """
    cameras = img2lidar.shape[0]
    points = lidar_points(img2lidar.unsqueeze(0), frustum_points(corners.repeat(cameras, 1), depths))
    low, high = position_range.split(3)
    codes = inverse_sigmoid((points - low) / (high - low), eps=1e-5)
    return codes.reshape(cameras, *size, -1).permute(0, 3, 1, 2)


@registered_if_named(POSITIONAL_ENCODING)
class SinePositionalEncoding3D(BaseModule):
    """Sines and cosines of the counts of cameras, rows and columns without padding.

    Args:
        num_feats: numbers per count; half of them are sines.
        normalize: must be True (ConfigError): counts are divided by the last count.
    """

    def __init__(self, num_feats: int, normalize: bool = False, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if not normalize:
            raise ConfigError('SinePositionalEncoding3D: normalize=False is not supported; set it to True')
        self.num_feats = num_feats

    def forward(self, padding: Tensor) -> Tensor:
        """Return the code (1, N, 3 num_feats, h, w) of a mask (1, N, h, w), True where there is padding."""
        codes = []
        for axis in (1, 2, 3):
            counts = (~padding).float().cumsum(axis)
            last = counts.narrow(axis, counts.shape[axis] - 1, 1)
            shares = (counts / (last + EPSILON)).unsqueeze(-1)
            turns = sine_encoding(shares, self.num_feats)
            codes += [turns[..., 0::2], turns[..., 1::2]]
        return torch.cat(codes, dim=-1).permute(0, 1, 4, 2, 3)
