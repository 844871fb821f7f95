"""Steps of BEVFusion's test pipelines: pictures and matrices.

Glossary: N cameras, h, w size of the original pictures, H, W size of the results, pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES

from mm2onnx_driving.layers.datasets.pipelines.augmentation import ImageTransform
from mm2onnx_driving.layers.datasets.pipelines.multi_view_image import NormalizeMultiviewImage
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


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
