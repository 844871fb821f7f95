"""Reads configs of mmdet 3 without mmengine, and converts them to mmdet 2.28.

A file may use values of its bases (`_base_.name`, `{{_base_.name}}`), and is run, as with mmcv. A
checkpoint's config, `meta.cfg`, is parsed as data.
"""

import ast
import copy
import importlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mmcv.utils import ConfigDict

from mmdeploy_ext.base.commands import command
from mmdeploy_ext.base.config import INNER_DATASETS, LOADERS3, is_config3, nested_config, types_of
from mmdeploy_ext.base.errors import ConfigError, printable
from mmdeploy_ext.base.user_modules import is_block_of_bases, is_python_config, parsed_config, user_folders
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint
from mmdeploy_ext.upstream.weights.convert.conversion import model_tensors
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import (
    INNER,
    OWN_MODELS,
    OWN_TYPES,
    parts,
    to_mmdet2_model,
    without_scope,
)
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import COMMAND
from mmdeploy_ext.upstream.weights.convert.mmdet3_points import is_of_points, to_mmdet3d_1_0

# Converts mmdet 3's test pipeline and `data_preprocessor` to a test pipeline of mmdet 2.28.
#
# mmdet 3 normalises and pads a batch in the model, mmdet 2 a picture in the pipeline. Source: mmdet 3.3.0
# `DetDataPreprocessor`, mmengine 0.10.7 `ImgDataPreprocessor`, mmdet 2.28.2 `datasets/pipelines`.


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


# Reads pure-Python configs of mmengine (`with read_base():`) without mmengine.
#
# An imported class or function becomes its dotted name, as mmengine writes it into a checkpoint. Source:
# mmengine 0.10.7 `base/config.py`, `config/utils.py`.


class Values(ConfigDict):
    """A dict of a base, which configs change by `update` or `merge`."""

    def merge(self, other: dict[str, Any]) -> None:
        """Set the values of `other`; a dict with `_delete_` replaces the one that is there."""
        merged = _merged(copy.deepcopy(other), copy.deepcopy(self))
        self.clear()
        self.update(merged)


def _merged(new: Any, old: Any) -> Any:
    if not isinstance(new, dict):
        return new
    kept = {} if new.pop('_delete_', False) or not isinstance(old, dict) else old
    return {**kept, **{key: _merged(value, kept.get(key)) for key, value in new.items()}}


def read_python_config(path: Path) -> dict[str, Any]:
    """Values of a config with its bases, without the names that it imports.

    ConfigError with file and line: an import or statement that mmengine does not read, a missing base.
    """
    values, imported = _read(path)
    return {key: value for key, value in values.items() if key not in imported}


def _read(path: Path) -> tuple[dict[str, Any], set[str]]:
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'), str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{path}: syntax error: {error}') from error
    scope: dict[str, Any] = {'__file__': str(path)}
    imported: set[str] = set()
    body: list[ast.stmt] = []
    for statement in tree.body:
        if is_block_of_bases(statement):
            for base in statement.body:
                imported |= _take_base(path, base, scope)
        elif isinstance(statement, ast.Import | ast.ImportFrom) and not _is_of_python(statement):
            names = _imported_names(path, statement)
            scope.update(names)
            imported |= names.keys()
        elif isinstance(statement, ast.Assign) and '_base_' in map(ast.unparse, statement.targets):
            _refuse(
                path, statement.lineno, '`_base_` beside imports; expected `with read_base():` in its place'
            )
        else:
            body.append(statement)
    tree.body = body
    try:
        exec(compile(tree, str(path), 'exec'), scope)
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename == str(path)]
        _refuse(path, lines[-1] if lines else 1, f'{type(error).__name__}: {error}')
    values = {
        key: Values._hook(copy.deepcopy(value))
        for key, value in scope.items()
        if not (key.startswith('__') or callable(value) or isinstance(value, ModuleType))
    }
    return values, imported


def _refuse(path: Path, line: int, text: str) -> NoReturn:
    raise ConfigError(f'{path}:{line}: cannot be read: {text}')


def _is_of_python(statement: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        names = [statement.module or ''] if not statement.level else ['']
    return all(name.partition('.')[0] in sys.stdlib_module_names for name in names)


def _imported_names(path: Path, statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Name in the config -> dotted name of the class or function."""
    if isinstance(statement, ast.Import):
        text = ast.unparse(statement)
        _refuse(
            path, statement.lineno, f'`{text}`; expected `from MODULE import NAME` of what a `type` names'
        )
    if statement.level or any(alias.name == '*' for alias in statement.names):
        _refuse(path, statement.lineno, f'`{ast.unparse(statement)}` stands outside of `with read_base():`')
    return {alias.asname or alias.name: f'{statement.module}.{alias.name}' for alias in statement.names}


def _take_base(path: Path, statement: ast.stmt, scope: dict[str, Any]) -> set[str]:
    """Read the file of `from .folder.module import *` and put its values into `scope`; return its imports."""
    if not isinstance(statement, ast.ImportFrom) or not statement.module:
        text = ast.unparse(statement)
        _refuse(
            path, statement.lineno, f'`{text}` in `with read_base():`; expected `from .module import ...`'
        )
    place = Path(*statement.module.split('.')).with_suffix('.py')
    levels = [path.parent, *path.parent.parents]
    folders = [levels[statement.level - 1]] if statement.level else user_folders(str(path))
    file = next((folder / place for folder in folders if (folder / place).is_file()), None)
    if file is None:
        _refuse(path, statement.lineno, f'base {place} is not in {folders[0]}; copy it there')
    with nested_config(path):
        values, imported = _read(file)
    for alias in statement.names:
        if alias.name == '*':
            scope.update(values)
        elif alias.name in values:
            scope[alias.asname or alias.name] = values[alias.name]
        else:
            _refuse(path, statement.lineno, f'{file} has no value {alias.name}')
    return imported


# The configs of mmdet 3.3.0 that are not translated, by kind. `python -m dev.mmdet3_configs` counts them.


CONFIGS = 823
"""Of mmdet 3.3.0."""
NO_MODEL, OTHER_PACKAGE, NO_BASE = (
    'files without a `model`, such as `common/`',
    'classifiers, with a `_base_` of mmpretrain',
    'files with a `_base_` that mmdet 3.3 lacks',
)
NO_PIPELINE = 'files without a test pipeline'
SCRIPTS = 'scripts in the folder of configs (`override_category.py`)'
REFUSED: dict[str, tuple[int, tuple[str, ...]]] = {
    'models with text: GLIP, Grounding DINO, MM Grounding DINO': (73, ('GLIP', 'GroundingDINO')),
    NO_MODEL: (15, ()),
    OTHER_PACKAGE: (5, ()),
    'Mask2Former models of videos': (5, ('Mask2FormerVideo',)),
    're-identification models (`reid/`)': (4, ('BaseReID',)),
    SCRIPTS: (3, ()),
    'models of Detectron2': (3, ('Detectron2Wrapper',)),
    'backbones of timm': (2, ('TIMMBackbone',)),
    NO_BASE: (4, ()),
    NO_PIPELINE: (1, ()),
}
"""Kind -> number of configs, and the types in them that are refused."""
KINDS = {name: kind for kind, (_, names) in REFUSED.items() for name in names}


def number_of(kind: str) -> str:
    """Text of a message: how many configs of mmdet 3.3 are of this kind."""
    return f'{kind} are not translated ({REFUSED[kind][0]} of the {CONFIGS} configs of mmdet 3.3)'


def check_types(model: dict[str, Any]) -> None:
    """ConfigError: the entry `model`, without scopes, has a type that is not translated."""
    for key, name in types_of(model, 'model'):
        if kind := KINDS.get(name):
            raise ConfigError(f'{key}={name!r}: {number_of(kind)}; {ANY_MODULE}')


ANY_MODULE = 'export it as an nn.Module yourself, and prove the file with prove-module (docs/any-module.md)'
DATASETS = ('CocoDataset', 'CityscapesDataset', 'DeepFashionDataset', 'LVISV05Dataset', 'LVISV1Dataset')
"""Data sets of both versions."""
ADVICE = (
    'write the whole config from the checkpoint, in which mmengine stores it: '
    f'`{command(COMMAND)} CHECKPOINT CONFIG.py`; or pass TIME/vis_data/config.py of the training'
)
CLASSIFIERS = 'mmcls::', 'mmpretrain::'
PIPELINES = 'test_pipeline', 'val_pipeline', 'tta_pipeline'
FAMILIES = 'mmdeploy_ext.families.base'
CHECKPOINTS = ('.pth', '.pt', '.ckpt')
BASE_VALUE = re.compile(r'[\'"]?\{\{\s*(_base_[\w.]*)\s*\}\}[\'"]?')


def to_mmdet2_config(cfg: Any) -> Any:
    """Convert a config of mmdet 3 or mmdet3d 1.4: model, test pipeline and test data set.

    Data sets of pictures outside of `DATASETS` become a CocoDataset with `annotations.json`. Training and
    Runner keys are left out. ConfigError: mmdet 2.28 lacks a part, key or value.
    """
    from mmcv import Config

    model, filename = cfg.get('model'), cfg.filename
    if not isinstance(model, dict):
        raise ConfigError(f'{filename}: model={model!r}, expected a dict with `type`; {number_of(NO_MODEL)}')
    if not is_config3(cfg):
        raise ConfigError(
            f'{filename}: is not a config of mmdet 3: it has none of data_preprocessor, {", ".join(LOADERS3)}'
        )
    try:
        values = _translated(cfg, model)
    except KeyError as error:
        raise ConfigError(
            f'{filename}: has no {error}, which a {model.get("type")} of mmdet 3 has in its model or pipeline'
        ) from error
    except ConfigError as error:
        raise ConfigError(f'{filename}: {error}') from error
    if settings := cfg.get('backend_config'):
        values['backend_config'] = _plain(settings)
    translated = Config(values, cfg_text=cfg.text, filename=filename)
    importlib.import_module(FAMILIES).load_families('')  # which register the classes of mmdet's models
    try:
        model_tensors(translated)  # refuses parts that mmdet 2.28 does not have
    except ConfigError as error:
        modules = (cfg.get('custom_imports') or {}).get('imports') or ()
        if not modules:
            raise
        raise ConfigError(
            f'{error}; custom_imports={modules!r} need the registry of mmengine and are not imported: prove '
            f'the file of a model of mmdet 2.28 against a recording of yours, `verify --recorded`'
        ) from error
    return translated


def _translated(cfg: Any, model: dict[str, Any]) -> dict[str, Any]:
    """Entries of the translated config."""
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if model.get('type') in INNER and isinstance(model.get('detector'), dict):
        note = f'note: {cfg.filename}: only the detector of {model["type"]} is translated'
        print(printable(note), file=sys.stderr)
        model = model['detector']
        preprocessor = model.get('data_preprocessor') or preprocessor
    check_types(without_scope(_plain(model)))
    preprocessor = without_scope(_plain(preprocessor))
    datasets = _test_datasets(cfg)
    if is_of_points(preprocessor):
        made = [to_mmdet3d_1_0(without_scope(_plain(model)), preprocessor, one) for one in datasets]
        tests = [test for _, test in made]
        return dict(model=made[0][0], data=dict(test=_joined(tests)), class_names=tests[0]['classes'])
    model2 = to_mmdet2_model(_plain(model))
    tests = [_to_mmdet2_dataset(one, to_mmdet2_pipeline(one['pipeline'], preprocessor)) for one in datasets]
    values = dict(model=model2, data=dict(test=_joined(tests)))
    if any(part['type'] in OWN_TYPES for part in parts(model2)):
        importlib.import_module(OWN_MODELS)
        values['custom_imports'] = dict(imports=[OWN_MODELS], allow_failed_imports=False)
    return values


def _test_datasets(cfg: Any) -> list[dict[str, Any]]:
    """Data sets of the test, else of the validation, without wrappers, scopes and repetitions."""
    datasets: list[dict[str, Any]] = []
    for key in LOADERS3:
        loaders = _plain(cfg.get(key)) or []
        for loader in [] if datasets else loaders if isinstance(loaders, list) else [loaders]:
            datasets += _unwrapped(loader.get('dataset'), [])
    datasets = datasets or [{}]
    own = [one['pipeline'] for one in datasets if one.get('pipeline')]
    steps = next((value for value in [*own, *(cfg.get(key) for key in PIPELINES)] if value), None)
    if not steps:
        raise ConfigError(
            f'has neither {LOADERS3[0]}.dataset.pipeline nor {PIPELINES[0]}; expected one; '
            f'{number_of(NO_PIPELINE)}'
        )
    return [without_scope({**one, 'pipeline': one.get('pipeline') or _plain(steps)}) for one in datasets]


def _unwrapped(settings: Any, after: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the data sets in wrappers, whose steps, `after`, follow the data sets' own."""
    if isinstance(settings, list | tuple):
        for one in settings:
            yield from _unwrapped(one, after)
    elif isinstance(settings, dict):
        steps = [*(settings.get('pipeline') or ()), *after]
        inner = [
            value
            for key, value in settings.items()
            if key in INNER_DATASETS or (isinstance(value, dict) and 'pipeline' in value)
        ]
        if inner:
            yield from _unwrapped(inner, steps)
        elif settings:
            yield {**settings, 'pipeline': steps}


def _joined(datasets: list[dict[str, Any]]) -> Any:
    return datasets[0] if len(datasets) == 1 else datasets


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _to_mmdet2_dataset(dataset: dict[str, Any], pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """Other types than `DATASETS` become a CocoDataset with their classes."""
    metainfo = dataset.get('metainfo') or {}
    classes = metainfo.get('classes') or metainfo.get('CLASSES')
    # a text is the path of a file of names, in both versions
    names = dict(classes=classes if isinstance(classes, str) else tuple(classes)) if classes else {}
    if dataset.get('type') not in DATASETS:
        return dict(
            type='CocoDataset', ann_file='annotations.json', img_prefix='', **names, pipeline=pipeline
        )
    root = Path(dataset.get('data_root') or '')
    proposals = dataset.get('proposal_file')
    proposals = dict(proposal_file=str(root / proposals)) if proposals else {}
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    return dict(
        type=dataset['type'],
        ann_file=str(root / dataset.get('ann_file', '')),
        img_prefix=str(root / prefix),
        **names,
        **proposals,
        pipeline=pipeline,
    )


def read_mmdet3_config(path: str | Path) -> Any:
    """Read a config of mmdet 3 (run, with its bases), or of an mmengine checkpoint (not run).

    ConfigError: missing, failing, or with a base of another package (`mmdet::...`).
    """
    from mmcv import Config

    if Path(path).suffix in CHECKPOINTS:
        text = load_checkpoint(path).meta.get('cfg')
        return Config(_parse_values(str(path), text), cfg_text=text, filename=str(path))
    if not Path(path).is_file():
        raise ConfigError(f'{path}: no such config file')
    read = read_python_config if is_python_config(parsed_config(str(path))) else _run_config
    return Config(read(Path(path)), filename=str(path))


def _parse_values(path: str, text: object) -> dict[str, Any]:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f'{path}: has no config in meta.cfg; pass the config')
    values = {}
    try:
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or [*map(type, statement.targets)] != [ast.Name]:
                raise ValueError(f'line {statement.lineno} is not `name = value`')
            values[statement.targets[0].id] = _parse_value(statement.value)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f'{path}: meta.cfg is not a plain config: {error}; pass the config') from error
    return values


def _parse_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        if not node.args and all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: _parse_value(keyword.value) for keyword in node.keywords}
        if [*map(type, node.args)] == [ast.Dict] and not node.keywords:
            return _parse_value(node.args[0])
    if isinstance(node, ast.Dict) and all(node.keys):
        pairs = zip(node.keys, node.values, strict=True)
        return {_parse_value(key): _parse_value(value) for key, value in pairs}
    if isinstance(node, ast.List):
        return [_parse_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_parse_value(element) for element in node.elts)
    return ast.literal_eval(node)


def _run_config(path: Path) -> dict[str, Any]:
    from mmcv import Config
    from mmcv.utils import ConfigDict

    try:
        tree = ast.parse(BASE_VALUE.sub(r'\1', path.read_text(encoding='utf-8')), str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{path}: syntax error: {error}') from error
    merged: dict[str, Any] = {}
    with nested_config(path):
        for base in _remove_bases(path, tree):
            merged.update(_run_config(base))
    scope: dict[str, Any] = {'_base_': ConfigDict(copy.deepcopy(merged)), '__file__': str(path)}
    try:
        exec(compile(tree, str(path), 'exec'), scope)
    except Exception as error:
        raise ConfigError(f'{path}: cannot be read: {type(error).__name__}: {error}') from error
    values = {
        key: copy.deepcopy(value)  # two names of one dict: mmcv removes `_delete_` from it
        for key, value in scope.items()
        if not (key.startswith('__') or key == '_base_' or callable(value) or isinstance(value, ModuleType))
    }
    return Config._merge_a_into_b(values, merged)


def _remove_bases(path: Path, tree: ast.Module) -> list[Path]:
    assignments = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and [getattr(target, 'id', None) for target in statement.targets] == ['_base_']
    ]
    tree.body = [statement for statement in tree.body if statement not in assignments]
    if not assignments:
        return []
    names = ast.literal_eval(assignments[-1].value)
    names = names if isinstance(names, list | tuple) else [names]
    if foreign := [name for name in names if '::' in name]:
        is_classifier = foreign[0].startswith(CLASSIFIERS)
        advice = f'{number_of(OTHER_PACKAGE)}; {ANY_MODULE}' if is_classifier else ADVICE
        raise ConfigError(f'{path}: _base_ {foreign[0]!r} is a file of another package; {advice}')
    bases = [path.parent / name for name in names]
    if missing := [base for base in bases if not base.is_file()]:
        raise ConfigError(f'{path}: _base_ {str(missing[0])!r}: no such file; {number_of(NO_BASE)}')
    return bases
