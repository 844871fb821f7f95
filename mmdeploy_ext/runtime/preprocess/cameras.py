"""Images and calibration of several cameras as a network input, in numpy and OpenCV.

Sources, test time: datasets/pipelines/transform_3d.py of exiawsh/StreamPETR 95f6470 and
fundamentalvision/BEVFormer 66b65f3. N cameras, H, W network input in pixels, h, w a camera's image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmdeploy_ext.base.errors import ConfigError, DataError, ShapeError
from mmdeploy_ext.runtime.preprocess.cam2img import intrinsics_problem
from mmdeploy_ext.runtime.preprocess.pictures import normalise, resize_cv2, resize_pillow
from mmdeploy_ext.spec.preparation import CAMERAS, MultiViewRule

STEPS = ('ResizeCropFlipRotImage', 'NormalizeMultiviewImage', 'PadMultiViewImage')
SCALED_STEPS = ('NormalizeMultiviewImage', 'RandomScaleImageMultiViewImage', 'PadMultiViewImage')
NEUTRAL = (
    'LoadMultiViewImageFromFiles', 'PETRFormatBundle3D', 'Collect3D', 'DefaultFormatBundle3D',
    'CustomCollect3D', 'NuScenesSparse4DAdaptor', 'Collect', 'LoadPointsFromFile', 'LoadAnnotations3D',
    'CustomObjectRangeFilter', 'CustomObjectNameFilter', 'CustomDefaultFormatBundle3D',
)  # fmt: skip


class Calibration(NamedTuple):
    """Calibration for pixels of the network input, (N, 4, 4) float64.

    Attributes:
        lidar2img: from the LiDAR frame in metres to pixels times depth.
        intrinsics: from each camera's frame in metres to pixels times depth.
    """

    lidar2img: np.ndarray
    intrinsics: np.ndarray


def prepare_views(rule: MultiViewRule, images_bgr: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, 3, H, W) float32 of N images (h, w, 3) uint8 BGR in the order of `cameras`."""
    _check_images(rule, images_bgr)
    prepared = np.zeros((rule.num_cameras, 3, *rule.input_size), np.float32)
    for target, image in zip(prepared, images_bgr, strict=True):
        values = image if rule.normalised_first else _cropped(rule, image)
        values = normalise(values, rule.mean, rule.std, rule.to_rgb)
        if rule.normalised_first:
            values = resize_cv2(values, *rule.resized)
        target[:, : rule.size[0], : rule.size[1]] = values.transpose(2, 0, 1)
    return prepared


def calibrate(rule: MultiViewRule, intrinsics: np.ndarray, lidar2cam: np.ndarray) -> Calibration:
    """Calibration of a rig for pixels of the network input.

    `intrinsics` (N, 3, 3) are of images of size `source`; `lidar2cam` (N, 4, 4) is rigid, metres, camera
    x right, y down, z forward.
    """
    count = rule.num_cameras
    for name, value, side in (('intrinsics', intrinsics, 3), ('lidar2cam', lidar2cam, 4)):
        shape = count, side, side
        problem = 'nothing' if value is None else f'shape {np.shape(value)}'
        if value is not None and np.shape(value) == shape:
            problem = '' if np.isfinite(value).all() else 'NaN or infinity'
        if problem:
            raise DataError(f'{name}: got {problem}, expected finite numbers of shape {shape}')
    for index, matrix in enumerate(np.asarray(intrinsics, np.float64)):
        if problem := intrinsics_problem(matrix, rule.source):
            raise DataError(f'intrinsics of {rule.camera_name(index)}: {problem}')
    full = np.tile(np.eye(4), (count, 1, 1))
    full[:, :3, :3] = rule.crop_matrix() @ np.asarray(intrinsics, np.float64)
    return Calibration(full @ np.asarray(lidar2cam, np.float64), full)


def _cropped(rule: MultiViewRule, image: np.ndarray) -> np.ndarray:
    (top, left), (height, width) = rule.crop, rule.size
    rows = max(top, 0), min(top + height, rule.resized[0])
    columns = max(left, 0), min(left + width, rule.resized[1])
    resized = resize_pillow(image, *rule.resized, resample='bicubic', rows=rows)
    inside = resized[:, columns[0] : columns[1]]
    if inside.shape[:2] == rule.size:
        return np.ascontiguousarray(inside)
    crop = np.zeros((height, width, 3), np.uint8)
    crop[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = inside
    return crop


def _check_images(rule: MultiViewRule, images: Sequence[np.ndarray]) -> None:
    if len(images) != rule.num_cameras:
        raise ShapeError(
            f'images: got {len(images)}, expected {rule.num_cameras}, one per camera'
            + (f' in the order {", ".join(rule.cameras)}' if rule.cameras else '')
        )
    for index, image in enumerate(images):
        if image is None or image.shape != (*rule.source, 3) or image.dtype != np.uint8:
            actual = 'None' if image is None else f'{image.dtype} {image.shape}'
            raise ShapeError(
                f'image of {rule.camera_name(index)}: got {actual}, expected uint8 {(*rule.source, 3)}; '
                f'the calibration is for that size, so scale image and intrinsics to it together'
            )


def multiview_rule(pipeline: Sequence[Mapping[str, Any]], num_cameras: int = 6) -> MultiViewRule:
    """Read the rule of a test pipeline of cameras; ConfigError: a step or order that it cannot express."""
    steps, order = {}, []
    for step in _flat_steps(pipeline):
        if step['type'] in (*STEPS, *SCALED_STEPS):
            steps[step['type']] = step
            order.append(step['type'])
        elif step['type'] not in NEUTRAL:
            raise ConfigError(
                f'test pipeline step {step["type"]!r} cannot be described by the exported file; supported: '
                f'{", ".join(dict.fromkeys((*STEPS, *SCALED_STEPS)))}'
            )
    normalised_first = STEPS[0] not in steps
    expected = SCALED_STEPS if normalised_first else STEPS
    optional = SCALED_STEPS[1:] if normalised_first else STEPS[2:]
    if order != [name for name in expected if name in steps or name not in optional]:
        raise ConfigError(
            f'test pipeline: got the steps {order}; expected {", ".join(expected)} in this order'
        )
    norm = steps['NormalizeMultiviewImage']
    _require(norm, ('mean', 'std'), norm['type'])
    if normalised_first:
        sizes = _scaled_sizes(pipeline, steps.get(SCALED_STEPS[1]))
    else:
        sizes = _sizes(steps[STEPS[0]])
    pad = steps.get(STEPS[2], {})
    if pad.get('pad_val', 0) != 0:
        raise ConfigError(f'test pipeline step {STEPS[2]}: pad_val={pad["pad_val"]}; expected 0')
    divisor = pad.get('size_divisor') or 1
    if not isinstance(divisor, int | float) or divisor < 1 or divisor % 1:
        raise ConfigError(f'test pipeline step {STEPS[2]}: size_divisor={divisor!r}; expected a whole number')
    pad_size = tuple(map(int, pad['size'])) if pad.get('size') else None
    if pad_size and (len(pad_size) != 2 or pad_size[0] < sizes['size'][0] or pad_size[1] < sizes['size'][1]):
        raise ConfigError(
            f'test pipeline step {STEPS[2]}: size={pad["size"]}; expected height and width of at least '
            f'{sizes["size"]}, the size of the images before it'
        )
    return MultiViewRule(
        mean=tuple(map(float, norm['mean'])),
        std=tuple(map(float, norm['std'])),
        to_rgb=bool(norm.get('to_rgb', True)),
        size_divisor=int(divisor),
        pad_size=pad_size,
        num_cameras=num_cameras,
        cameras=CAMERAS if num_cameras == len(CAMERAS) else (),
        normalised_first=normalised_first,
        **sizes,
    )


def _require(values: Mapping[str, Any], keys: Sequence[str], name: str) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise ConfigError(f'test pipeline step {name}: has no {", ".join(missing)}')


def _flat_steps(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    steps: list[Mapping[str, Any]] = []
    for step in pipeline:
        if step['type'] == 'MultiScaleFlipAug3D':
            if step.get('flip'):
                raise ConfigError('test pipeline step MultiScaleFlipAug3D: flip=True; expected False')
            steps.extend(step.get('transforms', ()))
        else:
            steps.append(step)
    return steps


def _scaled_sizes(pipeline: Sequence[Mapping[str, Any]], step: Mapping[str, Any] | None) -> dict[str, Any]:
    scale = 1.0
    if step is not None:
        _require(step, ('scales',), step['type'])
        if len(step['scales']) != 1:
            raise ConfigError(
                f'test pipeline step {step["type"]}: scales={step["scales"]}; expected one factor'
            )
        (scale,) = map(float, step['scales'])
    width_height = [step['img_scale'] for step in pipeline if 'img_scale' in step]
    if len(width_height) != 1 or np.shape(width_height[0]) != (2,):
        raise ConfigError(
            f'test pipeline step MultiScaleFlipAug3D: img_scale={width_height}; expected width and height '
            'of the original images'
        )
    source = int(width_height[0][1]), int(width_height[0][0])
    resized = int(source[0] * scale), int(source[1] * scale)
    return dict(source=source, size=resized, scale=scale, resized=resized, crop=(0, 0))


def _sizes(resize: Mapping[str, Any]) -> dict[str, Any]:
    """Resize and crop of upstream at test time: the crop is filled, centred, at the mean bottom."""
    _require(resize, ('data_aug_conf',), STEPS[0])
    if resize.get('training', True):
        raise ConfigError(f'test pipeline step {STEPS[0]}: training=True; expected False in a test pipeline')
    conf = resize['data_aug_conf']
    _require(conf, ('H', 'W', 'final_dim', 'bot_pct_lim'), f'{STEPS[0]}: data_aug_conf')
    source, size = (int(conf['H']), int(conf['W'])), tuple(map(int, conf['final_dim']))
    scale = max(size[0] / source[0], size[1] / source[1])
    resized = int(source[0] * scale), int(source[1] * scale)
    top = int((1 - float(np.mean(conf['bot_pct_lim']))) * resized[0]) - size[0]
    left = int(max(0, resized[1] - size[1]) / 2)
    return dict(source=source, size=size, scale=scale, resized=resized, crop=(top, left))
