"""The test pipeline of mmdet 3 and its `data_preprocessor` as the test pipeline of mmdet 2.28.

mmdet 3 normalises and pads a batch in the model, after the pipeline; mmdet 2 a picture in the pipeline.
Source: mmdet 3.3.0 `DetDataPreprocessor`, mmengine 0.10.7 `ImgDataPreprocessor`, mmdet 2.28.2
`datasets/pipelines`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.core.errors import ConfigError

PREPROCESSOR = {
    *('type', 'mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'pad_size_divisor', 'pad_value', 'non_blocking'),
    # they change no picture of a test; batch_augments are of training alone
    *('pad_mask', 'mask_pad_value', 'pad_seg', 'seg_pad_value', 'batch_augments', 'boxtype2tensor'),
}
"""Keys of a data_preprocessor that are known."""
STEPS: dict[str, set[str]] = {
    'LoadImageFromFile': {'to_float32', 'color_type', 'backend_args', 'imdecode_backend'},
    'Resize': {'scale', 'scale_factor', 'keep_ratio', 'clip_object_border', 'backend', 'interpolation'},
    'RandomFlip': {'prob'},
    'Pad': {'size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode'},
    'RandomCenterCropPad': {
        *('crop_size', 'ratios', 'border', 'mean', 'std', 'to_rgb'),
        *('test_mode', 'test_pad_mode', 'test_pad_add_pix'),
    },
    'LoadAnnotations': {
        *('with_bbox', 'with_mask', 'with_seg', 'poly2mask', 'with_label', 'box_type', 'backend_args'),
    },
    'LoadPanopticAnnotations': {'with_bbox', 'with_mask', 'with_seg', 'with_label', 'backend_args'},
    'PackDetInputs': {'meta_keys'},
}
"""Steps of a test pipeline of mmdet 3, and their keys that are known."""
ONLY = {
    ('LoadImageFromFile', 'backend_args'): None,
    ('LoadImageFromFile', 'imdecode_backend'): 'cv2',
    ('RandomFlip', 'prob'): 0.0,
}
"""Keys that have one value that mmdet 2 has, too; they are left out."""
LABELS = ('LoadAnnotations', 'LoadPanopticAnnotations')
META_KEYS = (
    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction', 'border'),
)
"""A picture's facts; mmdet 2 has no img_id, and calls the path filename."""
DEFAULT_META = ('filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip', 'flip_direction')


def pipeline2(steps: Sequence[Mapping[str, Any]], preprocessor: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the test pipeline of mmdet 2, of mmdet 3's `test_pipeline` and `model.data_preprocessor`.

    Raises:
        ConfigError: a step, a key or an order that mmdet 2 cannot do the same with; no file named.
    """
    _check_preprocessor(preprocessor)
    for index, step in enumerate(steps):
        _check_step(f'test_pipeline.{index}', step)
    kinds = [step['type'] for step in steps]
    by_kind = {kind: dict(step) for kind, step in zip(kinds, steps, strict=True) if kind not in LABELS}
    if len(by_kind) != sum(kind not in LABELS for kind in kinds):
        raise ConfigError(f'test_pipeline: a step is there twice: {kinds}')
    resize = by_kind.pop('Resize', None) or {}
    load, packed = by_kind.pop('LoadImageFromFile', None), by_kind.pop('PackDetInputs', {})
    if load is None:
        raise ConfigError('test_pipeline: has no LoadImageFromFile; expected one')
    scale = _scale(resize)
    own = {key: resize[key] for key in ('keep_ratio', 'backend', 'interpolation') if key in resize}
    pad, crop = by_kind.get('Pad'), by_kind.get('RandomCenterCropPad')
    resized = dict(type='Resize', **{'keep_ratio': 'img_scale' not in scale, **own})
    inner = [step for step in (resized, crop, dict(type='RandomFlip'), pad) if step is not None]
    inner += _normalised_and_padded(preprocessor, pad, scale)
    inner += [_to_tensor(inner), _collect(packed)]
    if crop is not None:  # gives float32, which cv2 does not resize as it does 8 bits
        load.setdefault('to_float32', True)
    load = {key: value for key, value in load.items() if ('LoadImageFromFile', key) not in ONLY}
    return [load, dict(type='MultiScaleFlipAug', **scale, flip=False, transforms=inner)]


def _to_tensor(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the step that makes a tensor; without Normalize it has to fill in `img_norm_cfg`, too."""
    if any(step['type'] == 'Normalize' for step in steps):
        return dict(type='ImageToTensor', keys=['img'])
    return dict(type='DefaultFormatBundle')


def _check_step(where: str, step: Mapping[str, Any]) -> None:
    kind = step.get('type')
    if kind not in STEPS:
        raise ConfigError(f'{where}.type={kind!r} is not known here; expected one of {", ".join(STEPS)}')
    for key, value in step.items():
        if key != 'type' and key not in STEPS[kind]:
            raise ConfigError(f'{where}.{key}={value!r}: {kind} has no such key here')
        only = ONLY.get((kind, key), value)
        if value != only:
            raise ConfigError(
                f'{where}.{key}={value!r} of {kind}: mmdet 2.28 has no such thing; expected {only!r}'
            )


def _check_preprocessor(config: Mapping[str, Any]) -> None:
    where = 'model.data_preprocessor'
    if config.get('type', 'DetDataPreprocessor') != 'DetDataPreprocessor':
        raise ConfigError(f'{where}.type={config["type"]!r}: expected DetDataPreprocessor')
    for key, value in config.items():
        if key not in PREPROCESSOR:
            raise ConfigError(
                f'{where}.{key}={value!r} is not known here; expected {", ".join(sorted(PREPROCESSOR))}'
            )
    if config.get('rgb_to_bgr'):
        raise ConfigError(
            f'{where}.rgb_to_bgr=True: mmdet 2.28 reads BGR and has no step for it; expected False'
        )


def _scale(resize: Mapping[str, Any]) -> dict[str, Any]:
    if resize.get('scale') is not None:
        scale = resize['scale']
        return dict(img_scale=(scale, scale) if isinstance(scale, int) else tuple(scale))
    factor = resize.get('scale_factor', 1.0)
    if factor not in (1.0, (1.0, 1.0), [1.0, 1.0]):
        raise ConfigError(f'test_pipeline: Resize with scale_factor={factor!r}; expected a scale, or 1.0')
    return dict(scale_factor=1.0)


def _normalised_and_padded(
    config: Mapping[str, Any], padded: Mapping[str, Any] | None, scale: Mapping[str, Any]
) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    mean, to_rgb = config.get('mean'), bool(config.get('bgr_to_rgb', False))
    if mean is not None:
        steps.append(dict(type='Normalize', mean=list(mean), std=list(config['std']), to_rgb=to_rgb))
    elif to_rgb:
        steps.append(dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=True))
    divisor, value = config.get('pad_size_divisor', 1), float(config.get('pad_value', 0))
    if divisor > 1 and not (padded and _are_multiples(padded, scale, divisor)):
        if padded:
            raise ConfigError(
                f'model.data_preprocessor.pad_size_divisor={divisor} after a Pad of the pipeline to another '
                f'size; expected one of both'
            )
        pad = dict(pad_val=dict(img=[value] * 3)) if value else {}
        steps.append(dict(type='Pad', size_divisor=divisor, **pad))
    return steps


def _are_multiples(padded: Mapping[str, Any], scale: Mapping[str, Any], divisor: int) -> bool:
    """Return whether what a Pad gives needs no more padding to multiples of the divisor."""
    sides = padded.get('size') or (scale.get('img_scale') if padded.get('pad_to_square') else None)
    if sides is None:
        return int(padded.get('size_divisor') or 1) % divisor == 0
    return len(set(sides)) == 1 and sides[0] % divisor == 0


def _collect(packed: Mapping[str, Any]) -> dict[str, Any]:
    if keys := [key for key in packed.get('meta_keys', ()) if key not in META_KEYS]:
        raise ConfigError(
            f'test_pipeline: PackDetInputs with meta_keys {keys}; expected some of {list(META_KEYS)}'
        )
    bordered = 'border' in packed.get('meta_keys', ())
    return dict(
        type='Collect', keys=['img'], **(dict(meta_keys=(*DEFAULT_META, 'border')) if bordered else {})
    )
