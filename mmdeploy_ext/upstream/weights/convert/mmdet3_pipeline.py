"""Converts mmdet 3's test pipeline and `data_preprocessor` to a test pipeline of mmdet 2.28.

mmdet 3 normalises and pads a batch in the model, mmdet 2 a picture in the pipeline. Source: mmdet 3.3.0
`DetDataPreprocessor`, mmengine 0.10.7 `ImgDataPreprocessor`, mmdet 2.28.2 `datasets/pipelines`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.base.errors import ConfigError

PREPROCESSOR_KEYS = {
    'type', 'mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'pad_size_divisor', 'pad_value', 'non_blocking',
    # these change no picture of a test; batch_augments belong to training
    'pad_mask', 'mask_pad_value', 'pad_seg', 'seg_pad_value', 'batch_augments', 'boxtype2tensor',
}  # fmt: skip
PREPROCESSORS: dict[str, set[str]] = {
    'DetDataPreprocessor': set(),
    'TrackDataPreprocessor': {'use_det_processor'},
    'BoxInstDataPreprocessor': {
        'mask_stride', 'pairwise_size', 'pairwise_dilation', 'pairwise_color_thresh', 'bottom_pixels_removed',
    },
}  # fmt: skip
"""Type -> further keys, which only a training reads."""
AUGMENTATION = 'TestTimeAug'
BROADCASTERS = ('ProposalBroadcaster', 'TransformBroadcaster')
"""Steps that run others."""
STEP_KEYS: dict[str, set[str]] = {
    'LoadImageFromFile': {'to_float32', 'color_type', 'backend_args', 'imdecode_backend'},
    'Resize': {'scale', 'scale_factor', 'keep_ratio', 'clip_object_border', 'backend', 'interpolation'},
    'LoadProposals': {'num_max_proposals'},
    'RandomFlip': {'prob'},
    'Pad': {'size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode'},
    'RandomCenterCropPad': {
        'crop_size', 'ratios', 'border', 'mean', 'std', 'to_rgb',
        'test_mode', 'test_pad_mode', 'test_pad_add_pix',
    },
    'LoadAnnotations': {
        'with_bbox', 'with_mask', 'with_seg', 'poly2mask', 'with_label', 'box_type', 'backend_args',
    },
    'LoadPanopticAnnotations': {'with_bbox', 'with_mask', 'with_seg', 'with_label', 'backend_args'},
    'LoadTrackAnnotations': {'with_bbox', 'with_mask', 'with_label', 'with_instance_id'},
    'PackDetInputs': {'meta_keys'},
    'PackTrackInputs': {'meta_keys', 'pack_single_img'},
}  # fmt: skip
FIXED_VALUES = {
    ('LoadImageFromFile', 'imdecode_backend'): ('cv2', 'pillow'),  # equal pixels: 50 pictures, JPEG and PNG
    ('RandomFlip', 'prob'): (0.0,),
    ('Pad', 'padding_mode'): ('constant',),
}
"""Step and key -> values that mmdet 2 supports; the key is left out."""
ORDER = ('LoadImageFromFile', 'LoadProposals', 'Resize', 'RandomCenterCropPad', 'Pad', 'PackDetInputs')
ANNOTATION_STEPS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadTrackAnnotations')
"""Steps that are left out."""
DEFAULT_META = ('filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip', 'flip_direction')
"""Default meta keys of mmdet 2's Collect that tests read."""


def to_mmdet2_pipeline(
    steps: Sequence[Mapping[str, Any]], preprocessor: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Test pipeline of mmdet 2: LoadImageFromFile, and MultiScaleFlipAug with the others.

    ConfigError: mmdet 2 does not support a step, key, value or order. KeyError: no LoadImageFromFile.
    """
    _check_preprocessor(preprocessor)
    steps = [
        inner
        for step in steps
        for inner in (step['transforms'] if step.get('type') in BROADCASTERS else [step])
    ]
    steps, scales, flips = _without_augmentation(steps)
    for index, step in enumerate(steps):
        _check_step(f'test_pipeline.{index}', step)
    types = [step['type'] for step in steps if step['type'] not in ANNOTATION_STEPS]
    step_of = {step['type']: dict(step) for step in steps}
    ordered = [step for step in ORDER if step in types]
    if [step for step in types if step in ORDER] != ordered:
        raise ConfigError(f'test_pipeline: has the order {", ".join(types)}; expected {", ".join(ordered)}')
    load, resize = step_of['LoadImageFromFile'], step_of.get('Resize', {})
    pad = _pad(step_of['Pad']) if 'Pad' in step_of else None
    crop = step_of.get('RandomCenterCropPad')
    scale = _scale(resize)
    options = {key: resize[key] for key in ('keep_ratio', 'backend', 'interpolation') if key in resize}
    resize = dict(type='Resize', **{'keep_ratio': 'img_scale' not in scale, **options})
    transforms = [step for step in (resize, crop, dict(type='RandomFlip'), pad) if step is not None]
    transforms += _normalise_and_pad(preprocessor, pad, scale)
    if any(step['type'] == 'Normalize' for step in transforms):
        transforms.append(dict(type='ImageToTensor', keys=['img']))
    else:
        transforms.append(dict(type='DefaultFormatBundle'))  # also fills in `img_norm_cfg`
    collect = _collect(step_of.get('PackDetInputs', {}))
    before = []
    if 'LoadProposals' in step_of:
        before = [step_of['LoadProposals']]
        fields = [dict(key='proposals', stack=False)]
        transforms += [dict(type='ToTensor', keys=['proposals']), dict(type='ToDataContainer', fields=fields)]
        collect['keys'].append('proposals')
    transforms.append(collect)
    if crop is not None:  # it makes float32, which cv2 resizes in another way than 8 bits
        load.setdefault('to_float32', True)
    load = {key: value for key, value in load.items() if ('LoadImageFromFile', key) not in FIXED_VALUES}
    if storage := load.pop('backend_args', None):
        load['file_client_args'] = storage
    if len(scales) > 1:
        scale = dict(img_scale=[_scale(dict(scale=one))['img_scale'] for one in scales])
    return [load, *before, dict(type='MultiScaleFlipAug', **scale, flip=flips, transforms=transforms)]


def _without_augmentation(steps: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Any], bool]:
    """Steps with the first choice of a TestTimeAug, its scales, and whether it flips."""
    plain, scales, flips = [], [], False
    for index, step in enumerate(steps):
        if step.get('type') != AUGMENTATION:
            plain.append(step)
            continue
        for choices in step['transforms']:
            if all(choice.get('type') == 'RandomFlip' for choice in choices):
                flips = any(choice.get('prob') for choice in choices)
                plain.append(dict(type='RandomFlip'))
                continue
            rest = [{key: value for key, value in choice.items() if key != 'scale'} for choice in choices]
            if any(one != rest[0] for one in rest):
                raise ConfigError(
                    f'test_pipeline.{index}.transforms has the choices {choices!r}; expected one, or choices '
                    f'that differ in the scale alone'
                )
            if choices[0].get('type') == 'Resize':
                scales = [choice.get('scale') for choice in choices]
            plain.append(choices[0])
    return plain, scales, flips


def _check_step(path: str, step: Mapping[str, Any]) -> None:
    kind = step.get('type')
    if kind not in STEP_KEYS:
        raise ConfigError(f'{path}.type={kind!r} is not known here; expected one of {", ".join(STEP_KEYS)}')
    for key, value in step.items():
        if key != 'type' and key not in STEP_KEYS[kind]:
            raise ConfigError(f'{path}.{key}={value!r}: {kind} has no such key here')
        expected = FIXED_VALUES.get((kind, key), (value,))
        if value not in expected:
            raise ConfigError(
                f'{path}.{key}={value!r} of {kind}: mmdet 2.28 has no such thing; expected '
                f'{" or ".join(map(repr, expected))}'
            )


def _check_preprocessor(config: Mapping[str, Any]) -> None:
    path = 'model.data_preprocessor'
    kind = config.get('type', 'DetDataPreprocessor')
    if kind not in PREPROCESSORS:
        raise ConfigError(f'{path}.type={kind!r}: expected one of {", ".join(PREPROCESSORS)}')
    for key, value in config.items():
        if key not in PREPROCESSOR_KEYS | PREPROCESSORS[kind]:
            raise ConfigError(
                f'{path}.{key}={value!r} is not known here; expected {", ".join(sorted(PREPROCESSOR_KEYS))}'
            )
    if config.get('rgb_to_bgr'):
        raise ConfigError(
            f'{path}.rgb_to_bgr=True: mmdet 2.28 reads BGR and has no step for it; expected False'
        )


def _scale(resize: Mapping[str, Any]) -> dict[str, Any]:
    if resize.get('scale') is not None:
        scale = resize['scale']
        return dict(img_scale=(scale, scale) if isinstance(scale, int) else tuple(scale))
    factor = resize.get('scale_factor', 1.0)
    if factor not in (1.0, (1.0, 1.0), [1.0, 1.0]):
        raise ConfigError(f'test_pipeline: Resize with scale_factor={factor!r}; expected a scale, or 1.0')
    return dict(scale_factor=1.0)


def _pad(step: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a Pad.

    mmdet 3 has the width first in `size`, mmdet 2 the height; a number in `pad_val` is for all channels in
    mmdet 3, for the first in mmdet 2.
    """
    pad = {key: value for key, value in step.items() if ('Pad', key) not in FIXED_VALUES}
    if pad.get('size'):
        pad['size'] = tuple(pad['size'])[::-1]
    values = pad.get('pad_val', 0)
    values = values if isinstance(values, dict) else dict(img=values)
    if isinstance(values.get('img'), int) and values['img']:
        pad['pad_val'] = dict(values, img=(values['img'],) * 3)
    return pad


def _normalise_and_pad(
    config: Mapping[str, Any], pad: Mapping[str, Any] | None, scale: Mapping[str, Any]
) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    mean, to_rgb = config.get('mean'), bool(config.get('bgr_to_rgb', False))
    if mean is not None:
        steps.append(dict(type='Normalize', mean=list(mean), std=list(config['std']), to_rgb=to_rgb))
    elif to_rgb:
        steps.append(dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=True))
    divisor, value = config.get('pad_size_divisor', 1), float(config.get('pad_value', 0))
    if divisor <= 1:
        return steps
    if pad is None:
        pad_value = dict(pad_val=dict(img=[value] * 3)) if value else {}
        steps.append(dict(type='Pad', size_divisor=divisor, **pad_value))
        return steps
    sides = pad.get('size') or (scale.get('img_scale') if pad.get('pad_to_square') else None)
    if sides is None:
        is_multiple = int(pad.get('size_divisor') or 1) % divisor == 0
    else:
        is_multiple = len(set(sides)) == 1 and sides[0] % divisor == 0
    if not is_multiple:
        raise ConfigError(
            f'model.data_preprocessor.pad_size_divisor={divisor} after a Pad of the pipeline to another '
            f'size; expected one of both'
        )
    return steps


def _collect(pack: Mapping[str, Any]) -> dict[str, Any]:
    step = dict(type='Collect', keys=['img'])
    if 'border' in pack.get('meta_keys', ()):
        step['meta_keys'] = (*DEFAULT_META, 'border')
    return step
