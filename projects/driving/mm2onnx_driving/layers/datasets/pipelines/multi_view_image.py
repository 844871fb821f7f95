"""Normalisation, padding and tensors of all camera images of a frame.

Glossary: H, W size of an image in pixels, C channels.
"""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import DefaultFormatBundle3D

from mmdeploy_ext.upstream.models.catalogue import registered_if_named

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
