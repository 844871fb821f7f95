"""Faults of the preprocessing of pictures: name -> a context in which the rule or the reader has it.

They are planted by what they do, around public functions of `preprocess/` and of the runtime's reader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import unittest.mock
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmdeploy_ext.preprocess import pictures
from mmdeploy_ext.preprocess.pictures import PreparedImage, PreprocessRule
from mmdeploy_ext.runtime import detect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Fault = contextlib.AbstractContextManager[Any]


def replaced(owner: Any, name: str, make: Callable[[Callable], Callable]) -> Fault:
    """Return a context in which a function is what `make` returns for it."""
    original = getattr(owner, name)
    return unittest.mock.patch.object(owner, name, functools.wraps(original)(make(original)))


def another_rule(**changes: Callable[[Any], Any]) -> Fault:
    """Return a context in which rules are applied with other values of some fields."""

    def make(original: Callable) -> Callable:
        def apply(rule: PreprocessRule, image: np.ndarray) -> PreparedImage:
            values = {name: change(getattr(rule, name)) for name, change in changes.items()}
            return original(dataclasses.replace(rule, **values), image)

        return apply

    return replaced(PreprocessRule, 'apply', make)


def another_result(**changes: Callable[[PreparedImage], Any]) -> Fault:
    """Return a context in which rules give other values in some fields of what they prepare."""

    def make(original: Callable) -> Callable:
        def apply(rule: PreprocessRule, image: np.ndarray) -> PreparedImage:
            result = original(rule, image)
            return dataclasses.replace(result, **{name: change(result) for name, change in changes.items()})

        return apply

    return replaced(PreprocessRule, 'apply', make)


def another_rounding(rounded: Callable[[float], int]) -> Fault:
    """Return a context in which the sides of a resized picture are rounded otherwise."""

    def make(original: Callable) -> Callable:
        def resized_shape(rule: PreprocessRule, height: int, width: int) -> tuple[int, int]:
            if not rule.keep_ratio or (rule.size is None and rule.img_scale is None):
                return original(rule, height, width)
            if rule.size:
                factor = min(rule.size[0] / height, rule.size[1] / width)
            else:
                long_edge, short_edge = max(rule.img_scale), min(rule.img_scale)
                factor = min(long_edge / max(height, width), short_edge / min(height, width))
            return rounded(height * factor), rounded(width * factor)

        return resized_shape

    return replaced(PreprocessRule, 'resized_shape', make)


def another_interpolation(flag: int) -> Fault:
    """Return a context in which OpenCV interpolates otherwise."""

    def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
        return cv2.resize(image, (width, height), interpolation=flag)

    return unittest.mock.patch.dict(pictures.RESIZERS, cv2=resize)


def another_reading(flags: int) -> Fault:
    """Return a context in which files are decoded by other flags of OpenCV."""

    def make(original: Callable) -> Callable:
        def read(path: Any) -> np.ndarray:
            image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
            if image.dtype != np.uint8:
                image = (image >> 8).astype(np.uint8)
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image[..., :3]

        return read

    return replaced(pictures, 'read_image', make)


def shifted(result: PreparedImage) -> np.ndarray:
    """Return the tensor with its padding above and left of the content."""
    missing = (
        side - content for side, content in zip(result.tensor.shape[1:], result.img_shape, strict=True)
    )
    return np.roll(result.tensor, tuple(missing), (1, 2))


@contextlib.contextmanager
def size_of_fixed_files_ignored() -> Iterator[None]:
    """Prepare pictures for a file with one size as for a dynamic one."""

    def make(original: Callable) -> Callable:
        def prepare(metadata: Any, image: np.ndarray) -> PreparedImage:
            return dataclasses.replace(metadata.preprocess, size=None).apply(image)

        return prepare

    with replaced(detect, 'prepare', make):
        yield


FAULTS: dict[str, Callable[[], Fault]] = {
    'to_rgb inverted': lambda: another_rule(to_rgb=lambda value: not value),
    'keep_ratio inverted': lambda: another_rule(keep_ratio=lambda value: not value),
    'resized by areas': lambda: another_interpolation(cv2.INTER_AREA),
    'resized by cubic interpolation': lambda: another_interpolation(cv2.INTER_CUBIC),
    'padding above and left': lambda: another_result(tensor=shifted),
    'padding of another value': lambda: another_rule(pad_val=lambda value: (value[0] + 0.01, *value[1:])),
    'mean and deviation in another order': lambda: another_rule(
        mean=lambda value: value[::-1], std=lambda value: value[::-1]
    ),
    'a mean a thousandth larger': lambda: another_rule(mean=lambda value: (value[0] * 1.001, *value[1:])),
    'resized sides rounded down': lambda: another_rounding(int),
    'resized sides rounded up': lambda: another_rounding(math.ceil),
    'resized sides rounded to even': lambda: another_rounding(round),
    'orientation of EXIF ignored': lambda: another_reading(cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION),
    'pictures read as grey': lambda: another_reading(cv2.IMREAD_GRAYSCALE),
    'pictures read as they are': lambda: another_reading(cv2.IMREAD_UNCHANGED),
    'scale_factor the other way round': lambda: another_result(
        scale_factor=lambda result: 1 / result.scale_factor
    ),
    'scale_factor height before width': lambda: another_result(
        scale_factor=lambda result: result.scale_factor[[1, 0, 3, 2]]
    ),
    'scale_factor of the unrounded size': lambda: another_result(
        scale_factor=lambda result: np.repeat(result.scale_factor.max(), 4)
    ),
    'ori_shape of the resized picture': lambda: another_result(ori_shape=lambda result: result.img_shape),
    'img_shape of the padded picture': lambda: another_result(
        img_shape=lambda result: result.tensor.shape[1:]
    ),
    'sides of img_shape exchanged': lambda: another_result(img_shape=lambda result: result.img_shape[::-1]),
    'the fixed size of a file ignored': size_of_fixed_files_ignored,
}
