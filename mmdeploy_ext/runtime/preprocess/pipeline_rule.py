"""From an mmdet 2.x test pipeline to a `PreprocessRule`; other steps are refused."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.preprocess.pictures import RESIZERS, normalise
from mmdeploy_ext.spec.preparation import WARP, PreprocessRule

ORDERED = ('Resize', 'AffineResize', 'RandomCenterCropPad', 'Normalize', 'Pad')
"""Steps that change the image, in the order of the rule. Padding before normalising is normalised, too."""
NEUTRAL = (
    'LoadImageFromFile', 'LoadImageFromWebcam', 'LoadMultiChannelImageFromFiles', 'LoadProposals',
    'RandomFlip', 'DefaultFormatBundle', 'ImageToTensor', 'ToTensor', 'ToDataContainer', 'Collect',
    'LoadImageFromFileMono3D', 'RandomFlip3D', 'DefaultFormatBundle3D', 'Collect3D',
)  # fmt: skip
"""Steps that change no pixel at test time."""
KNOWN = ('MultiScaleFlipAug', *ORDERED, *NEUTRAL)
FLIPS = dict(RandomFlip='flip_ratio', RandomFlip3D='flip_ratio_bev_horizontal')
"""Step that flips pictures -> its option."""
REQUIRED = {
    'LoadImageFromFile': dict(channel_order='bgr'),
    'LoadImageFromFileMono3D': dict(color_type='color', channel_order='bgr'),
    'Resize': dict(interpolation='bilinear', ratio_range=None, override=False),
}
"""Options that have to keep these defaults of mmdet and mmdet3d."""

COLOR_TYPES = {
    'LoadImageFromFile': ('color', 'grayscale', 'unchanged'),
    'LoadMultiChannelImageFromFiles': ('unchanged', 'grayscale'),
}
"""Loader -> its options, the default first."""


def rule_from_pipeline(
    pipeline: Sequence[Mapping[str, Any]], key: str = '', own_loader: bool = False
) -> PreprocessRule:
    """Read the rule of an mmdet 2.x test pipeline, `MultiScaleFlipAug` included.

    `key` is the pipeline's key in the config, for advice. With `own_loader` the first step is a class of the
    user's that loads an array. ConfigError: a step, option or order that the rule cannot express.
    """
    values: dict[str, Any] = dict(to_rgb=False)
    steps, order = _flat_steps(pipeline, values, key), []
    if own_loader and steps[0].get('type') not in KNOWN:
        values.update(color_type='unchanged', to_float32=bool(steps.pop(0).get('to_float32')))
    for step in steps:
        kind = step.get('type')
        _check_options(step)
        if kind in READERS:
            _read(step, values)
        if kind in ORDERED:
            order.append(kind)
        elif kind not in NEUTRAL:
            raise ConfigError(
                f'test pipeline step {kind!r} can change images or points in a way that the exported file '
                f'cannot describe; if it does not, remove it from the test pipeline; supported: '
                f'{", ".join(ORDERED)}'
            )
    if order[-2:] == ['Pad', 'Normalize']:  # Mask2Former's: padding is normalised, too
        order[-2:] = reversed(order[-2:])
        values['pad_pixel'] = 'pad_val'
    _check_combination(order, values)
    if not {'Resize', 'AffineResize'} & set(order):  # MultiScaleFlipAug only passes its scale on
        values.pop('img_scale', None)
    colours = {key: values.get(key, getattr(PreprocessRule, key)) for key in ('mean', 'std', 'to_rgb')}
    pad_val = values.get('pad_val', (0.0,))
    if len(pad_val) == 1:  # cv2.copyMakeBorder (mmcv calls it) puts a number into the first channel
        pad_val = (*pad_val, *[0.0] * (len(colours['mean']) - 1))
    if (pixel := values.pop('pad_pixel', None)) is not None:
        pixel = pad_val if pixel == 'pad_val' else pixel
        pad_val = normalise(np.float32(pixel).reshape(1, 1, -1), **colours).reshape(-1)
    return PreprocessRule(**{**values, 'pad_val': tuple(map(float, pad_val))})


def _read(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    try:
        READERS[step['type']](step, values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f'test pipeline step {dict(step)}: an option has a wrong type: {error}') from error


def _check_combination(order: Sequence[str], values: Mapping[str, Any]) -> None:
    if order != [kind for kind in ORDERED if kind in order]:
        raise ConfigError(
            f'test pipeline: got the steps {", ".join(order)}; expected each of {", ".join(ORDERED)} at most '
            f'once and in this order'
        )
    if {'Resize', 'AffineResize'} <= set(order):
        raise ConfigError('test pipeline: Resize and AffineResize both resize the image; expected one')
    if {'RandomCenterCropPad', 'Pad'} <= set(order):
        raise ConfigError('test pipeline: RandomCenterCropPad and Pad both pad the image; expected one')
    color_type = values.get('color_type', 'color')
    if color_type != 'color' and (values.get('resize') in ('pillow', WARP) or values.get('centred')):
        raise ConfigError(f'test pipeline: color_type={color_type!r} requires Resize with OpenCV and Pad')
    if color_type == 'unchanged' and 'Normalize' not in order:
        raise ConfigError(
            'test pipeline: got no Normalize, which decides the number of bands; add one, such as '
            "dict(type='Normalize', mean=[0, 0, 0, 0], std=[1, 1, 1, 1], to_rgb=False), which changes "
            'nothing'
        )
    if values.get('to_float32') and values.get('resize') == 'pillow':
        raise ConfigError(
            "test pipeline step LoadImageFromFile: to_float32=True before Resize with backend='pillow', "
            'which resizes 8 bits only; expected to_float32=False'
        )


def steps_of(pipeline: Sequence[Mapping[str, Any]], *kinds: str) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of these types (default: all), also inside other steps."""
    for step in pipeline:
        if not kinds or step.get('type') in kinds:
            yield step
        yield from steps_of(step.get('transforms', ()), *kinds)


def _flat_steps(
    pipeline: Sequence[Mapping[str, Any]], values: dict[str, Any], key: str
) -> list[Mapping[str, Any]]:
    steps: list[Mapping[str, Any]] = []
    for index, step in enumerate(pipeline):
        if step.get('type') != 'MultiScaleFlipAug':
            option = FLIPS.get(step.get('type'), '')
            if step.get(option):
                raise ConfigError(
                    f'test pipeline step {step["type"]}: {option}={step[option]} outside of '
                    'MultiScaleFlipAug flips images at random; expected 0'
                )
            steps.append(step)
            continue
        step_key = f'{key}.{index}' if key else ''
        if step.get('flip'):
            advice = f', with {cfg_options({f"{step_key}.flip": False})}' if key else ''
            raise ConfigError(
                f'test pipeline step MultiScaleFlipAug: flip={step["flip"]} is test-time augmentation, '
                f'which an exported file does not support; remove it{advice}'
            )
        if step.get('img_scale') is not None:
            values['img_scale'] = _single_scale(step['img_scale'], step_key)
        elif step.get('scale_factor', 1.0) not in (1.0, [1.0], (1.0,)):
            raise ConfigError(
                f'test pipeline step MultiScaleFlipAug: scale_factor={step["scale_factor"]} cannot be '
                f'described by the exported file; expected 1.0, or an img_scale'
            )
        else:
            values['img_scale'] = None  # mmdet's Resize then keeps the size, whatever its own img_scale is
        steps.extend(step.get('transforms', ()))
    return steps


def _check_options(step: Mapping[str, Any]) -> None:
    kind = step.get('type')
    for option, required in REQUIRED.get(kind, {}).items():
        value = step.get(option, required)
        if value != required:
            raise ConfigError(
                f'test pipeline step {kind}: {option}={value!r} cannot be described by the exported file; '
                f'expected {required!r}'
            )


def _single_scale(img_scale: Any, key: str = '') -> tuple[int, int]:
    if not isinstance(img_scale, list | tuple) or not img_scale:
        raise ConfigError(f'test pipeline: img_scale={img_scale!r}; expected one width and height')
    scales = [img_scale] if isinstance(img_scale[0], int | float) else list(img_scale)
    if np.shape(scales[0]) != (2,):
        raise ConfigError(f'test pipeline: img_scale={img_scale!r}; expected one width and height')
    if len(scales) != 1:
        advice = f', with {cfg_options({f"{key}.img_scale": tuple(scales[0])})}' if key else ''
        raise ConfigError(
            f'test pipeline: img_scale={img_scale} has {len(scales)} scales; an exported file supports '
            f'one (no test-time augmentation): choose one{advice}'
        )
    return int(scales[0][0]), int(scales[0][1])


# each takes a step and the fields of the rule so far, `values`, and sets the fields that the step decides


def _read_load(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values['to_float32'] = bool(step.get('to_float32'))
    choices = COLOR_TYPES.get(step['type'], ('color',))
    color_type = step.get('color_type', choices[0])
    if color_type not in choices:
        raise ConfigError(
            f'test pipeline step {step["type"]}: color_type={color_type!r} cannot be described by the '
            f'exported file; expected {" or ".join(map(repr, choices))}'
        )
    values['color_type'] = color_type if step['type'] == 'LoadImageFromFile' else choices[0]
    if values['color_type'] == 'grayscale':
        values.update(mean=(0.0,), std=(1.0,))
    if step['type'] == 'LoadMultiChannelImageFromFiles':  # sets scale_factor=1, so that Resize keeps sizes
        values.setdefault('img_scale', None)


def _read_resize(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values['keep_ratio'] = bool(step.get('keep_ratio', True))
    values['resize'] = step.get('backend', 'cv2')
    if values['resize'] not in RESIZERS:
        raise ConfigError(
            f'test pipeline step Resize: backend={values["resize"]!r}; expected one of {", ".join(RESIZERS)}'
        )
    if step.get('img_scale') is not None and 'img_scale' not in values:
        values['img_scale'] = _single_scale(step['img_scale'])


def _read_affine_resize(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values.update(resize=WARP, img_scale=tuple(map(int, _numbers(step, 'img_scale', 2))))


def _numbers(step: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    numbers = step.get(key)
    try:
        array = np.asarray(numbers, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != (count,):
        raise ConfigError(
            f'test pipeline step {step["type"]}: {key}={numbers!r} cannot be used; expected {count} numbers'
        )
    return tuple(array.tolist())


def _read_normalize(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    counts = dict(color=3, grayscale=1, unchanged=max(np.size(step.get('mean')), 1))
    count = counts[values.get('color_type', 'color')]
    values.update({key: _numbers(step, key, count) for key in ('mean', 'std')})
    values['to_rgb'] = bool(step.get('to_rgb', True))
    if count != 3 and values['to_rgb']:
        raise ConfigError(
            f'test pipeline step Normalize: to_rgb=True for images with {count} bands, which mmcv ignores '
            'or fails on; expected False'
        )


def _read_pad(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    values['size_divisor'] = int(step.get('size_divisor') or 1)
    if step.get('size') is not None:
        values['pad_size'] = tuple(map(int, _numbers(step, 'size', 2)))
    if step.get('pad_to_square'):
        scale = values.get('img_scale')
        if scale is None or scale[0] != scale[1] or not values.get('keep_ratio'):
            raise ConfigError(
                f'test pipeline step Pad: pad_to_square=True after a Resize to img_scale={scale}, '
                f'keep_ratio={values.get("keep_ratio")} gives each image a square of another size; '
                'expected a square img_scale with keep_ratio=True'
            )
        values['pad_size'] = scale
    pad_val = step.get('pad_val', 0)
    if isinstance(pad_val, dict):
        pad_val = pad_val.get('img', 0)
    if isinstance(pad_val, int | float):
        pad_val = (pad_val,)
    values['pad_val'] = tuple(map(float, pad_val))


def _read_centre_pad(step: Mapping[str, Any], values: dict[str, Any]) -> None:
    if not (test_mode := step.get('test_mode', False)):
        raise ConfigError(
            f'test pipeline step RandomCenterCropPad: test_mode={test_mode!r} crops images at random; '
            'expected True'
        )
    mode, operand = step.get('test_pad_mode', ('logical_or', 127))
    values['centred'] = True
    if mode == 'logical_or':
        values.update(pad_or=int(operand), pad_more=int(step.get('test_pad_add_pix', 0)))
    else:
        values['size_divisor'] = int(operand)
    mean = np.asarray(_numbers(step, 'mean', 3), np.float32)
    values['pad_pixel'] = (mean[::-1] if step.get('to_rgb') else mean).tolist()


READERS = {
    'LoadImageFromFile': _read_load,
    'LoadImageFromFileMono3D': _read_load,
    'LoadMultiChannelImageFromFiles': _read_load,
    'Resize': _read_resize,
    'AffineResize': _read_affine_resize,
    'RandomCenterCropPad': _read_centre_pad,
    'Normalize': _read_normalize,
    'Pad': _read_pad,
}
