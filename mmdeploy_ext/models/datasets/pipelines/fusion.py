"""Steps of BEVFusion's pipelines: pictures, the matrix of augmented points, and headings without a front.

Glossary: N cameras, h, w size of the original pictures, H, W size of the results, px.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets.builder import PIPELINES as PIPELINES_3D
from PIL import Image

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.datasets.pipelines.augmentation import ImageTransform
from mmdeploy_ext.models.datasets.pipelines.multi_view_image import NormalizeMultiviewImage


@registered_if_named(PIPELINES)
class ImageAug3D:
    """Resize, crop, mirror and rotate each camera's picture.

    `img_aug_matrix` (N, 4, 4) moves (x, y, any, 1), pixels of an original picture, to pixels of the result.

    Args:
        final_dim: (H, W) of the result, px.
        resize_lim: factor, from and to; at test time the mean.
        bot_pct_lim: share of the resized height that is cut off at the bottom, from and to; at test time the
            mean.
        rot_lim: degrees, from and to, counter-clockwise about the middle, in training alone.
        rand_flip: mirror half of the pictures, in training.
        is_train: random values for each camera; False: test time, no rotation and no mirroring.
        source: (h, w) of the original pictures, px.

    Source: mit-han-lab/bevfusion db75150, mmdet3d/datasets/pipelines/transforms_3d.py:45-150. Differs in: the
    size of the pictures is checked.
    """

    def __init__(
        self,
        final_dim: Sequence[int],
        resize_lim: Sequence[float],
        bot_pct_lim: Sequence[float] = (0.0, 0.0),
        rot_lim: Sequence[float] = (0.0, 0.0),
        rand_flip: bool = False,
        is_train: bool = False,
        source: Sequence[int] = (900, 1600),
    ) -> None:
        self.rot_lim = tuple(rot_lim)
        self.final_dim, self.source = tuple(final_dim), tuple(source)
        self.resize_lim, self.bot_pct_lim = tuple(resize_lim), tuple(bot_pct_lim)
        self.rand_flip, self.is_train = rand_flip, is_train

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change `img`, a list of (h, w, 3), to (H, W, 3) float32, and write `img_aug_matrix`.

        A picture of another size than `source` raises DataError; its intrinsics would no longer fit.
        """
        images, matrices = [], []
        for index, image in enumerate(results['img']):
            if image.shape[:2] != self.source:
                raise DataError(
                    f'picture of camera {index}: got {image.shape[0]}x{image.shape[1]} (height x width), '
                    f'ImageAug3D has source={self.source}; intrinsics and pictures have to be of that size'
                )
            change = self._change()
            picture, moved = self._turned(change.image(image), change.matrix())
            images.append(picture)
            matrix = np.eye(4, dtype=np.float32)
            matrix[:2, :2], matrix[:2, 3] = moved[:2, :2], moved[:2, 2]
            matrices.append(matrix)
        results.update(img=images, img_aug_matrix=np.stack(matrices))
        return results

    def _change(self) -> ImageTransform:
        def drawn(limits: tuple[float, float]) -> float:
            return float(np.random.uniform(*limits) if self.is_train else np.mean(limits))

        scale = drawn(self.resize_lim)
        size = int(self.source[1] * scale), int(self.source[0] * scale)
        top = int((1 - drawn(self.bot_pct_lim)) * size[1]) - self.final_dim[0]
        room = max(0, size[0] - self.final_dim[1])
        left = int(np.random.uniform(0, room) if self.is_train else room / 2)
        flip = bool(self.is_train and self.rand_flip and np.random.choice([0, 1]))
        box = left, top, left + self.final_dim[1], top + self.final_dim[0]
        return ImageTransform(scale, size, box, flip)

    def _turned(self, picture: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its 3x3 matrix, rotated at random in training; empty corners are black."""
        if not (self.is_train and any(self.rot_lim)):
            return picture, matrix
        angle = float(np.random.uniform(*self.rot_lim))
        turned = np.array(Image.fromarray(np.uint8(picture)).rotate(angle), np.float32)
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        turn = np.eye(3, dtype=np.float32)
        turn[:2, :2] = [[cosine, sine], [-sine, cosine]]  # y points down
        middle = np.float32(self.final_dim[::-1]) / 2
        turn[:2, 2] = middle - turn[:2, :2] @ middle
        return turned, turn @ matrix


@registered_if_named(PIPELINES)
class ImageNormalize(NormalizeMultiviewImage):
    """Turn pictures from OpenCV's BGR to RGB, and normalise them: (value / 255 - mean) / std.

    `mean` and `std` are of red, green, blue, for values in 0..1. They are rounded to float32 once, as mmdet's
    steps have them.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(*(np.array(values, np.float64) * 255.0 for values in (mean, std)))


@registered_if_named(PIPELINES)
class LidarAugMatrix:
    """Write `lidar_aug_matrix` (4, 4): LiDAR frame to that of the points behind mmdet3d's earlier steps.

    These are GlobalRotScaleTrans, once at most, and RandomFlip3D, in any order; they note what they did.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Compose the notes in the order of the steps.

        DataError: GlobalRotScaleTrans ran twice, which overwrites what it noted first.
        """
        matrix, steps = np.eye(4), results.get('transformation_3d_flow', [])
        if steps.count('R') > 1:
            raise DataError('LidarAugMatrix: GlobalRotScaleTrans is in the pipeline twice; expected once')
        for step in steps:
            change = np.eye(4)
            # rotation, scale, translation, and flips of y ('horizontal') and x ('vertical')
            if step == 'R':  # mmdet3d multiplies points as rows
                change[:3, :3] = np.asarray(results['pcd_rotation'], np.float64).T
            elif step == 'S':
                change[:3, :3] *= results['pcd_scale_factor']
            elif step == 'T':
                change[:3, 3] = results['pcd_trans']
            elif step == 'HF':
                change[1, 1] = -1
            elif step == 'VF':
                change[0, 0] = -1
            matrix = change @ matrix
        results['lidar_aug_matrix'] = matrix.astype(np.float32)
        return results


@registered_if_named(PIPELINES_3D)
class FoldHeading:
    """Take the yaw of training boxes modulo half a turn, into 0..pi.

    The boxes of the generated world have no front that a LiDAR could see. Sine and cosine of headings that
    are opposite by chance cancel out, and then the head learns no axis either; folded, it learns the axis,
    and every second heading is opposite. Velocities stay as they are.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Fold `gt_bboxes_3d` in place."""
        boxes = results['gt_bboxes_3d'].tensor
        boxes[:, 6] = boxes[:, 6] % math.pi
        return results
