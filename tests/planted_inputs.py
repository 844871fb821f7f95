"""Faults of code that both sides run: how pictures are prepared, and the names of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

RULE = 'mmdeploy_ext.preprocess.pipeline_rule:rule_from_pipeline'
PICTURES = 'mmdeploy_ext.preprocess.pictures'
APPLY, RESIZED, CV2 = (
    f'{PICTURES}:PreprocessRule.apply',
    f'{PICTURES}:PreprocessRule.resized_shape',
    f'{PICTURES}:resize_cv2',
)
NORMALISE, NAMES = f'{PICTURES}:normalise', 'mmdeploy_ext.exporting.model:class_names'


def rule(**changes: Callable) -> Change:
    """Return a fault of the rule that is read out of the test pipeline."""
    return RULE, settings(**changes)


def prepared(**changes: Callable) -> Change:
    """Return a fault of what is said of a prepared picture."""
    return APPLY, settings(**changes)


def _area(original: Callable, image: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _floor(original: Callable, self: Any, height: int, width: int) -> tuple[int, int]:
    """Return sizes of a resize that keeps the ratio, rounded down."""
    if self.size is not None or self.img_scale is None or not self.keep_ratio:
        return original(self, height, width)
    long, short = max(self.img_scale), min(self.img_scale)
    factor = min(long / max(height, width), short / min(height, width))
    return max(int(height * factor), 1), max(int(width * factor), 1)


NAMED = 'atss faster_rcnn mask_rcnn deformable_detr panoptic_fpn cornernet solov2 rtdetr'
NUMBERED = 'queryinst yolact'
"""Toys whose classes are numbers in order: sorting changes nothing there."""
planted('to_rgb inverted', f'{NAMED} {NUMBERED}', rule(to_rgb=lambda right: not right), shared=True)
planted(
    'names of classes are sorted',
    NAMED,
    (NAMES, result(lambda names, *_: tuple(sorted(names)))),
    shared=True,
)
planted(
    'names of classes are turned around',
    NUMBERED,
    (NAMES, result(lambda names, *_: names[::-1])),
    shared=True,
)
SOME = 'atss solov2'
planted('keep_ratio inverted', SOME, rule(keep_ratio=lambda right: not right), shared=True)
planted('pictures are resized by area', f'{SOME} rtdetr', (CV2, called(_area)), shared=True)
planted('pictures are resized to sizes that are rounded down', SOME, (RESIZED, called(_floor)), shared=True)
planted('the mean is that of BGR', 'atss', rule(mean=lambda mean: mean[::-1]), shared=True)
planted('std of 1', 'atss', rule(std=lambda std: (1.0, 1.0, 1.0)), shared=True)
planted('padded to multiples of 64', 'atss', rule(size_divisor=lambda size: 64), shared=True)
planted('padding of 114', 'atss', rule(pad_val=lambda value: (114.0, 114.0, 114.0)), shared=True)
planted('padding of 0', 'yolox', rule(pad_val=lambda value: (0.0, 0.0, 0.0)), shared=True)
planted(
    'the scale of the shorter side', SOME, rule(img_scale=lambda scale: (min(scale), min(scale))), shared=True
)
planted(
    'prepared with a scale_factor of h w h w',
    'atss',
    prepared(scale_factor=lambda scale: scale[[1, 0, 3, 2]]),
    shared=True,
)
planted(
    'prepared with one scale for width and height',
    'atss',
    prepared(scale_factor=lambda scale: scale[[0, 0, 0, 0]]),
    shared=True,
)
planted(
    'img_shape is that of the padded input',
    'atss',
    (APPLY, result(lambda right, *_: type(right)(**vars(right) | dict(img_shape=right.tensor.shape[1:])))),
    shared=True,
)
planted(
    'normalised in float16',
    'atss',
    (NORMALISE, result(lambda image, *_: image.astype(np.float16).astype(np.float32))),
    shared=True,
)
planted(
    'pictures mirrored', 'atss', (NORMALISE, argument(0, lambda image: image[:, ::-1].copy())), shared=True
)
planted(
    'the names of classes begin with a background',
    'atss',
    (NAMES, result(lambda names, *_: ('background', *names[:-1]))),
    shared=True,
)
