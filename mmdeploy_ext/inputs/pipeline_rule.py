"""From an mmdet 2.x test pipeline to a `PreprocessRule`; what the rule cannot express is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.inputs.pictures import RESIZERS, PreprocessRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ORDERED = ('Resize', 'Normalize', 'Pad')
"""Steps that change the image, in the only order that the rule has."""
NEUTRAL = (
    'LoadImageFromFile',
    'LoadImageFromWebcam',
    'RandomFlip',
    'DefaultFormatBundle',
    'ImageToTensor',
    'Collect',
)
NEEDED = {
    'LoadImageFromFile': dict(to_float32=False, color_type='color'),
    'Resize': dict(interpolation='bilinear', ratio_range=None),
    'MultiScaleFlipAug': dict(flip=False, scale_factor=None),
}
"""Options that have to keep these values, mmdet's defaults."""


def rule_from_pipeline(pipeline: Sequence[Mapping[str, Any]]) -> PreprocessRule:
    """Read the rule out of an mmdet 2.x test pipeline.

    Args:
        pipeline: list of transform dicts, `MultiScaleFlipAug` included.

    Raises:
        ConfigError: a step, option or order that the rule cannot express; the message names it.
    """
    values: dict[str, Any] = dict(to_rgb=False)
    order = []
    for step in _flat_steps(pipeline, values):
        kind = step.get('type')
        _check_options(step)
        if kind in ORDERED:
            order.append(kind)
            READERS[kind](step, values)
        elif kind not in NEUTRAL:
            raise ConfigError(
                f'test pipeline step {kind!r} changes the image in a way that the exported file cannot '
                f'describe; supported: {", ".join(ORDERED)}'
            )
    if order != [kind for kind in ORDERED if kind in order]:
        raise ConfigError(
            f'test pipeline: got the steps {", ".join(order)}; expected each of {", ".join(ORDERED)} at most '
            f'once and in this order'
        )
    return PreprocessRule(**values)


def _flat_steps(pipeline: Sequence[Mapping[str, Any]], values: dict[str, Any]) -> list[Mapping[str, Any]]:
    steps: list[Mapping[str, Any]] = []
    for step in pipeline:
        if step.get('type') == 'MultiScaleFlipAug':
            _check_options(step)
            if step.get('img_scale') is not None:
                values['img_scale'] = _single_scale(step['img_scale'])
            steps.extend(step.get('transforms', ()))
        else:
            steps.append(step)
    return steps


def _check_options(step: Mapping[str, Any]) -> None:
    kind = step.get('type')
    for option, needed in NEEDED.get(kind, {}).items():
        got = step.get(option, needed)
        if got != needed:
            raise ConfigError(
                f'test pipeline step {kind}: {option}={got!r} cannot be described by the exported file; '
                f'expected {needed!r}'
            )


def _single_scale(img_scale: Any) -> tuple[int, int]:
    scales = [img_scale] if isinstance(img_scale[0], int | float) else list(img_scale)
    if len(scales) != 1:
        raise ConfigError(
            f'test pipeline: img_scale={img_scale} has {len(scales)} scales; an exported file has one '
            f'(test-time augmentation is no part of it)'
        )
    return int(scales[0][0]), int(scales[0][1])


def _read_resize(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values['keep_ratio'] = bool(step.get('keep_ratio', True))
    values['resize'] = step.get('backend', 'cv2')
    if values['resize'] not in RESIZERS:
        raise ConfigError(
            f'test pipeline step Resize: backend={values["resize"]!r}; expected one of {", ".join(RESIZERS)}'
        )
    if step.get('img_scale') is not None and 'img_scale' not in values:
        values['img_scale'] = _single_scale(step['img_scale'])


def _read_normalize(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values.update(
        mean=tuple(map(float, step['mean'])),
        std=tuple(map(float, step['std'])),
        to_rgb=bool(step.get('to_rgb', True)),
    )


def _read_pad(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values['size_divisor'] = int(step.get('size_divisor') or 1)
    if step.get('size') is not None:
        values['pad_size'] = tuple(map(int, step['size']))
    if step.get('pad_to_square'):
        values['pad_size'] = _square(values)
    pad_val = step.get('pad_val', 0)
    if isinstance(pad_val, dict):
        pad_val = pad_val.get('img', 0)
    if isinstance(pad_val, int | float):
        pad_val = (pad_val, 0, 0)  # cv2.copyMakeBorder (mmcv calls it) puts a number into the first channel
    values['pad_val'] = tuple(map(float, pad_val))


def _square(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return the size of an image that is resized into a square, ratio kept, and padded to one.

    Raises:
        ConfigError: the square would be another one for each image.
    """
    scale = values.get('img_scale')
    if scale is None or scale[0] != scale[1] or not values.get('keep_ratio'):
        raise ConfigError(
            f'test pipeline step Pad: pad_to_square=True after a Resize to img_scale={scale}, '
            f'keep_ratio={values.get("keep_ratio")} gives each image a square of its own; expected a square '
            f'img_scale with keep_ratio=True'
        )
    return scale


READERS = {'Resize': _read_resize, 'Normalize': _read_normalize, 'Pad': _read_pad}
