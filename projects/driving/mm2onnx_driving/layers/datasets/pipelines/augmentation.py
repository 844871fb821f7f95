"""Resizing and cropping of all cameras of a frame at test time, and of their calibration.

Glossary: H, W size of an image in pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES
from PIL import Image

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# What PIL's `resize` without a filter means from Pillow 7 on; StreamPETR names none.
RESAMPLE = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class ImageTransform:
    """Resize by `scale`, then cut out `crop` (left, top, right, bottom, resized pixels)."""

    scale: float
    size: tuple[int, int]  # of the resized image: width, height
    crop: tuple[int, int, int, int]

    def matrix(self) -> np.ndarray:
        """Return the (3, 3) float32 matrix from source pixels to result pixels."""
        matrix = np.diag([self.scale, self.scale, 1.0]).astype(np.float32)
        matrix[:2, 2] = -self.crop[0], -self.crop[1]
        return matrix

    def image(self, image: np.ndarray) -> np.ndarray:
        """Transform an (H, W, 3) image of values 0..255 to float32."""
        result = Image.fromarray(np.uint8(image)).resize(self.size, RESAMPLE).crop(self.crop)
        return np.array(result).astype(np.float32)


@registered_if_named(PIPELINES)
class ResizeCropFlipRotImage:
    """Resize and crop all cameras alike, with their intrinsics and `lidar2img`.

    Args:
        data_aug_conf: `H`, `W` of the source, `final_dim` (H, W) of the result, `bot_pct_lim` (range of the
            share cut off at the bottom; the mean counts) and `rot_lim` (0, 0) (else ValueError); the smallest
            scale that fills the result, centred.
        training: must be False (ValueError).
        options: unused.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/transform_3d.py.
    """

    def __init__(self, data_aug_conf: dict[str, Any], training: bool = True, **options: Any) -> None:
        if training:
            raise ValueError(
                "mm2onnx's ResizeCropFlipRotImage cannot train; set training=False, or use StreamPETR's "
                'repository'
            )
        if tuple(data_aug_conf.get('rot_lim', (0.0, 0.0))) != (0.0, 0.0):
            raise ValueError(
                f'ResizeCropFlipRotImage: got rot_lim={data_aug_conf["rot_lim"]}, expected '
                f'(0.0, 0.0): rotated images are not supported'
            )
        self.data_aug_conf = data_aug_conf

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transform `img`, `intrinsics` (in place) and `lidar2img`."""
        expected = self.data_aug_conf['H'], self.data_aug_conf['W']
        for index, image in enumerate(results['img']):
            if image.shape[:2] != expected:
                raise DataError(
                    f'image of camera {index}: got {image.shape[0]}x{image.shape[1]} (height x '
                    f'width), data_aug_conf has H={expected[0]}, W={expected[1]}; intrinsics and '
                    f'images must be for that size'
                )
        transform = self.test_transform()
        results['img'] = [transform.image(img) for img in results['img']]
        for intrinsic in results['intrinsics']:
            intrinsic[:3, :3] = transform.matrix() @ intrinsic[:3, :3]
        results['lidar2img'] = [
            intrinsic @ extrinsic
            for intrinsic, extrinsic in zip(results['intrinsics'], results['extrinsics'], strict=True)
        ]
        return results

    def test_transform(self) -> ImageTransform:
        conf = self.data_aug_conf
        height, width = conf['final_dim']
        scale = max(height / conf['H'], width / conf['W'])
        size = int(conf['W'] * scale), int(conf['H'] * scale)
        left = int(max(0, size[0] - width) / 2)
        top = int((1 - float(np.mean(conf['bot_pct_lim']))) * size[1]) - height
        return ImageTransform(scale, size, (left, top, left + width, top + height))
