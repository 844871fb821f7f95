"""Augmentations that keep images, calibration, poses and boxes of a multi-camera frame consistent.

Glossary: H, W size of an image in px, n objects in an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.datasets.builder import PIPELINES
from PIL import Image

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.models.catalogue import registered_if_named

# What PIL's `resize` without a filter means from Pillow 7 on; StreamPETR names none.
RESAMPLE = Image.Resampling.BICUBIC
"""How pictures are resized."""
MIN_SIZE_2D = 2.0
"""Smallest width and height of a 2D box that stays, px."""
KEYS_2D = ('gt_bboxes', 'centers2d', 'gt_labels', 'depths')
"""Annotations of objects in the images: lists with an array per camera."""


@dataclass(frozen=True)
class ImageTransform:
    """Resize by `scale`, cut out `crop` (left, top, right, bottom px of the resized image), then mirror."""

    scale: float
    size: tuple[int, int]  # of the resized image: width, height
    crop: tuple[int, int, int, int]
    flip: bool = False

    @property
    def out_size(self) -> tuple[int, int]:
        """Width and height of the result in px."""
        return self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]

    def matrix(self) -> np.ndarray:
        """Return the 3x3 that maps homogeneous source px to result px; float32, as weights were trained."""
        matrix = np.diag([self.scale, self.scale, 1.0]).astype(np.float32)
        matrix[:2, 2] = -self.crop[0], -self.crop[1]
        if self.flip:
            matrix[0] = -matrix[0]
            matrix[0, 2] += self.out_size[0]
        return matrix

    def image(self, image: np.ndarray) -> np.ndarray:
        """Transform an (H, W, 3) image of values 0..255; float32 back. Outside the source it is 0."""
        result = Image.fromarray(np.uint8(image)).resize(self.size, RESAMPLE).crop(self.crop)
        if self.flip:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(result).astype(np.float32)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Transform (n, 2) px and clip them to the result."""
        width, height = self.out_size
        x = np.clip(points[:, 0] * self.scale - self.crop[0], 0, width)
        y = np.clip(points[:, 1] * self.scale - self.crop[1], 0, height)
        return np.stack([width - x if self.flip else x, y], axis=-1)

    def bboxes_xyxy(self, bboxes: np.ndarray) -> np.ndarray:
        """Transform (n, 4) px and clip them to the result."""
        corners = np.concatenate([self.points(bboxes[:, :2]), self.points(bboxes[:, 2:])], axis=-1)
        return corners[:, [2, 1, 0, 3]] if self.flip else corners


@registered_if_named(PIPELINES)
class ResizeCropFlipRotImage:
    """Resize, crop and mirror all cameras alike, and their intrinsics, `lidar2img` and 2D boxes with them.

    Args:
        data_aug_conf: `H`, `W` of the source, `final_dim` (H, W) of the result, `bot_pct_lim` (the share of
            the height that is cut off at the bottom, from and to), `resize_lim` (a factor, from and to),
            `rand_flip` (whether half of the frames are mirrored), `rot_lim` (only (0, 0), else ValueError).
        with_2d: transform the 2D boxes too (training).
        filter_invisible: drop 2D boxes that nearer ones cover wholly.
        training: random values; otherwise the smallest scale that fills the image, mean bottom cut, centred,
            no mirror.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/transform_3d.py. Differs in: the farthest box
    counts as covered like any other (there it always stays).
    """

    def __init__(
        self,
        data_aug_conf: dict[str, Any],
        with_2d: bool = True,
        filter_invisible: bool = True,
        training: bool = True,
    ) -> None:
        if tuple(data_aug_conf.get('rot_lim', (0.0, 0.0))) != (0.0, 0.0):
            raise ValueError(
                f'ResizeCropFlipRotImage: got rot_lim={data_aug_conf["rot_lim"]}, expected '
                f'(0.0, 0.0): rotated images are not supported'
            )
        self.data_aug_conf = data_aug_conf
        self.with_2d, self.filter_invisible, self.training = with_2d, filter_invisible, training

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transform `img`, `intrinsics`, `lidar2img` and, in training, 2D boxes, centres, labels and depths.

        The matrices of `intrinsics` are changed in place, and `lidar2img` is made anew of them and
        `extrinsics`. An image of another size than `data_aug_conf` says raises DataError; squeezed into
        place, it would no longer fit its intrinsics.
        """
        expected = self.data_aug_conf['H'], self.data_aug_conf['W']
        for index, image in enumerate(results['img']):
            if image.shape[:2] != expected:
                raise DataError(
                    f'image of camera {index}: got {image.shape[0]}x{image.shape[1]} (height x '
                    f'width), data_aug_conf has H={expected[0]}, W={expected[1]}; intrinsics and '
                    f'images have to be for that size'
                )
        transform = self.random_transform() if self.training else self.test_transform()
        results['img'] = [transform.image(img) for img in results['img']]
        for intrinsic in results['intrinsics']:
            intrinsic[:3, :3] = transform.matrix() @ intrinsic[:3, :3]
        results['lidar2img'] = [
            intrinsic @ extrinsic
            for intrinsic, extrinsic in zip(results['intrinsics'], results['extrinsics'], strict=True)
        ]
        if self.training and self.with_2d:
            per_camera = [
                self._transform_objects(transform, objects)
                for objects in zip(*(results[key] for key in KEYS_2D), strict=True)
            ]
            for key, values in zip(KEYS_2D, zip(*per_camera, strict=True), strict=True):
                results[key] = list(values)
        return results

    def random_transform(self) -> ImageTransform:
        """Return a random transform, drawn by numpy's global generator."""
        conf = self.data_aug_conf
        scale = np.random.uniform(*conf['resize_lim'])
        width = int(conf['W'] * scale)
        bottom = np.random.uniform(*conf['bot_pct_lim'])
        left = int(np.random.uniform(0, max(0, width - conf['final_dim'][1])))
        flip = bool(conf['rand_flip'] and np.random.choice([0, 1]))
        return self._transform(scale, bottom, left, flip)

    def test_transform(self) -> ImageTransform:
        """Return the transform of test time, see the class.

        For 704x256 of 1600x900, with nothing cut off at the bottom, it is scale 0.44 and rows 140..396.
        """
        conf = self.data_aug_conf
        height, width = conf['final_dim']
        scale = max(height / conf['H'], width / conf['W'])
        left = int(max(0, int(conf['W'] * scale) - width) / 2)
        return self._transform(scale, float(np.mean(conf['bot_pct_lim'])), left, flip=False)

    def _transform(self, scale: float, bottom: float, left: int, flip: bool) -> ImageTransform:
        """Return the transform that cuts off the share `bottom` at the bottom, and `left` px at the left."""
        conf = self.data_aug_conf
        height, width = conf['final_dim']
        size = int(conf['W'] * scale), int(conf['H'] * scale)
        top = int((1 - bottom) * size[1]) - height
        return ImageTransform(scale, size, (left, top, left + width, top + height), flip)

    def _transform_objects(
        self, transform: ImageTransform, objects: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        """Return boxes, centres, labels and depths of one camera's objects that stay visible."""
        bboxes, centers2d, labels, depths = (np.asarray(values) for values in objects)
        if not len(bboxes):
            return np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32), labels, depths
        bboxes, centers2d = transform.bboxes_xyxy(bboxes), transform.points(centers2d)
        keep = ((bboxes[:, 2:] - bboxes[:, :2]) >= MIN_SIZE_2D).all(axis=-1)
        if self.filter_invisible:
            keep[keep] = visible(bboxes[keep], depths[keep], transform.out_size)
        return bboxes[keep].astype(np.float32), centers2d[keep].astype(np.float32), labels[keep], depths[keep]


def visible(bboxes_xyxy: np.ndarray, depths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (n,) bool: which boxes show at least one whole px if nearer ones are painted over farther ones.

    The boxes (n, 4) px are inside an image of `size` (W, H) px; depths are (n,) metres.
    """
    owner = np.full((size[1], size[0]), -1)
    pixels = np.concatenate([np.ceil(bboxes_xyxy[:, :2]), np.floor(bboxes_xyxy[:, 2:])], axis=-1).astype(int)
    for i in np.argsort(-depths, kind='stable'):
        left, top, right, bottom = pixels[i]
        owner[top:bottom, left:right] = i
    return np.isin(np.arange(len(bboxes_xyxy)), owner)


@registered_if_named(PIPELINES)
class GlobalRotScaleTransImage:
    """Rotate about z, scale and shift the LiDAR frame: boxes, `lidar2img`, `ego_pose`, `ego_pose_inv`.

    The pose becomes that of the changed frame, so a sequence stays consistent though every frame draws anew.
    `extrinsics` stays the sensor's own. Scaled poses are no longer rigid.

    Args:
        rot_range: radians.
        scale_ratio_range: factor.
        translation_std: metres per axis.
        reverse_angle: whether the boxes' `rotate`, counter-clockwise in mmdet3d 1.0 and later, gets the
            negative angle, so that boxes turn with the frame; without it they turn the other way (it was
            right for mmdet3d 0.x, whose `rotate` is clockwise).
        training: has no effect; upstream's configs give it.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/transform_3d.py. Differs in: composed in float64.
    """

    def __init__(
        self,
        rot_range: Sequence[float] = (-0.3925, 0.3925),
        scale_ratio_range: Sequence[float] = (0.95, 1.05),
        translation_std: Sequence[float] = (0, 0, 0),
        reverse_angle: bool = False,
        training: bool = True,
    ) -> None:
        self.rot_range, self.scale_ratio_range = rot_range, scale_ratio_range
        self.translation_std, self.reverse_angle = translation_std, reverse_angle

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Draw one change of the frame and apply it; `gt_bboxes_3d` is changed in place."""
        angle = np.random.uniform(*self.rot_range)
        scale = np.random.uniform(*self.scale_ratio_range)
        shift = np.random.normal(scale=np.array(self.translation_std, dtype=np.float32), size=3)
        change = frame_change(angle, scale, shift)
        back = np.linalg.inv(change)
        results['ego_pose'] = (results['ego_pose'] @ back).astype(np.float32)
        results['ego_pose_inv'] = (change @ results['ego_pose_inv']).astype(np.float32)
        results['lidar2img'] = [matrix @ back for matrix in results['lidar2img']]
        boxes = results['gt_bboxes_3d']
        boxes.rotate(np.array(-angle if self.reverse_angle else angle))
        boxes.scale(scale)
        boxes.translate(shift)
        return results


def frame_change(angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """Return the float64 4x4 that turns points clockwise by `angle` in rad, then scales, then shifts them.

    `shift` is (3,) in m.
    """
    change = np.eye(4)
    change[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    change[:3] *= scale
    change[:3, 3] = shift
    return change
