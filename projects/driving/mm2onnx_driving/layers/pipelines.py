"""Steps of the test pipelines of several cameras: resizing, cropping, normalisation, padding, tensors.

Glossary: N cameras, h, w size of the original pictures, H, W size of the results, pixels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import DefaultFormatBundle3D
from PIL import Image

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- resizing and cropping of all cameras of a frame, and of their calibration


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


# ---- normalisation, padding, tensors

FLOAT64_KEYS = ('timestamp', 'img_timestamp')  # float32 has steps of 128 s at nuScenes' times


@registered_if_named(PIPELINES)
class NormalizeMultiviewImage:
    """Normalise by (image - mean) / std per channel, with `to_rgb` after BGR to RGB; adds `img_norm_cfg`.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/transform_3d.py.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results['img'] = [mmcv.imnormalize(img, self.mean, self.std, self.to_rgb) for img in results['img']]
        results['img_norm_cfg'] = dict(mean=self.mean, std=self.std, to_rgb=self.to_rgb)
        return results


@registered_if_named(PIPELINES)
class RandomScaleImageMultiViewImage:
    """Resize every image by the one factor in `scales`, bilinearly, with `lidar2img`.

    Source: fundamentalvision/BEVFormer 66b65f3, datasets/pipelines/transform_3d.py.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        if len(scales) != 1:
            raise ValueError(
                f'RandomScaleImageMultiViewImage: got scales={list(scales)}, expected one factor'
            )
        (self.scale,) = scales

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize `img`, a list of (H, W, 3); sets `img_shape` and `ori_shape`."""
        sizes = [(int(img.shape[1] * self.scale), int(img.shape[0] * self.scale)) for img in results['img']]
        scale = np.diag([self.scale, self.scale, 1.0, 1.0])
        results['img'] = [mmcv.imresize(img, size) for img, size in zip(results['img'], sizes, strict=True)]
        results['lidar2img'] = [scale @ matrix for matrix in results['lidar2img']]
        results['img_shape'] = results['ori_shape'] = [img.shape for img in results['img']]
        return results


@registered_if_named(PIPELINES)
class PadMultiViewImage:
    """Pad every image at the right and the bottom, to `size` (H, W) or to a multiple of `size_divisor`.

    Adds `img_shape` (before), `pad_shape` (after), both lists of (H, W, C), `pad_fix_size` and
    `pad_size_divisor`.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/transform_3d.py.
    """

    def __init__(
        self, size: tuple[int, int] | None = None, size_divisor: int | None = None, pad_val: float = 0
    ) -> None:
        if (size is None) == (size_divisor is None):
            raise ValueError(
                f'PadMultiViewImage: got size={size} and size_divisor={size_divisor}, expected only '
                'one of them'
            )
        self.size, self.size_divisor, self.pad_val = size, size_divisor, pad_val

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.size is not None:
            padded = [mmcv.impad(img, shape=self.size, pad_val=self.pad_val) for img in results['img']]
        else:
            padded = [
                mmcv.impad_to_multiple(img, self.size_divisor, pad_val=self.pad_val) for img in results['img']
            ]
        results.update(
            img=padded,
            img_shape=[img.shape for img in results['img']],
            pad_shape=[img.shape for img in padded],
            pad_fix_size=self.size,
            pad_size_divisor=self.size_divisor,
        )
        return results


@registered_if_named(PIPELINES)
class PETRFormatBundle3D(DefaultFormatBundle3D):
    """mmdet3d's bundle, plus `collect_keys` as float32 tensors (`FLOAT64_KEYS`: float64).

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/formating.py.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        collect_keys: Sequence[str],
        with_gt: bool = True,
        with_label: bool = True,
    ) -> None:
        super().__init__(class_names, with_gt=with_gt, with_label=with_label)
        self.collect_keys = collect_keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in self.collect_keys:
            dtype = np.float64 if key in FLOAT64_KEYS else np.float32
            results[key] = DataContainer(torch.from_numpy(np.array(results[key], dtype=dtype)))
        return super().__call__(results)


# ---- BEVFusion: pictures and matrices


@registered_if_named(PIPELINES)
class ImageAug3D:
    """Resize and crop each camera's picture.

    `img_aug_matrix` (N, 4, 4) moves (x, y, any, 1), original pixels, to result pixels.

    Args:
        final_dim: (H, W) of the result.
        resize_lim: range of the factor; the mean counts.
        bot_pct_lim: range of the share cut off at the bottom; the mean counts.
        is_train: must be False (ValueError).
        source: (h, w) of the original pictures.
        options: unused.

    Source: mit-han-lab/bevfusion db75150, mmdet3d/datasets/pipelines/transforms_3d.py:45-150.
    """

    def __init__(
        self,
        final_dim: Sequence[int],
        resize_lim: Sequence[float],
        bot_pct_lim: Sequence[float] = (0.0, 0.0),
        is_train: bool = False,
        source: Sequence[int] = (900, 1600),
        **options: Any,
    ) -> None:
        if is_train:
            raise ValueError(
                "mm2onnx's ImageAug3D cannot train; set is_train=False, or use BEVFusion's repository"
            )
        self.final_dim, self.source = tuple(final_dim), tuple(source)
        self.resize_lim, self.bot_pct_lim = tuple(resize_lim), tuple(bot_pct_lim)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        images, change = [], self._change()
        for index, image in enumerate(results['img']):
            if image.shape[:2] != self.source:
                raise DataError(
                    f'image of camera {index}: got {image.shape[0]}x{image.shape[1]} (height x width), '
                    f'ImageAug3D has source={self.source}; intrinsics and images must have that size'
                )
            images.append(change.image(image))
        moved, matrix = change.matrix(), np.eye(4, dtype=np.float32)
        matrix[:2, :2], matrix[:2, 3] = moved[:2, :2], moved[:2, 2]
        results.update(img=images, img_aug_matrix=np.tile(matrix, (len(images), 1, 1)))
        return results

    def _change(self) -> ImageTransform:
        scale = float(np.mean(self.resize_lim))
        size = int(self.source[1] * scale), int(self.source[0] * scale)
        top = int((1 - float(np.mean(self.bot_pct_lim))) * size[1]) - self.final_dim[0]
        left = int(max(0, size[0] - self.final_dim[1]) / 2)
        return ImageTransform(scale, size, (left, top, left + self.final_dim[1], top + self.final_dim[0]))


@registered_if_named(PIPELINES)
class ImageNormalize(NormalizeMultiviewImage):
    """Turn BGR pictures to RGB, and normalise them: (value / 255 - mean) / std, rounded to float32 once."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(*(np.array(values, np.float64) * 255.0 for values in (mean, std)))
