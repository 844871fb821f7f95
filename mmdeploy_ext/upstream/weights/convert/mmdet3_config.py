"""Reads configs of mmdet 3 without mmengine, and converts them to mmdet 2.28.

A file may use values of its bases (`_base_.name`, `{{_base_.name}}`), and is run, as with mmcv. A
checkpoint's config, `meta.cfg`, is parsed as data.
"""

import ast
import copy
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdeploy_ext.base.commands import command
from mmdeploy_ext.base.config import INNER_DATASETS, LOADERS3, is_config3, nested_config
from mmdeploy_ext.base.errors import ConfigError, printable
from mmdeploy_ext.base.user_modules import is_python_config, parsed_config
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
from mmdeploy_ext.upstream.weights.convert.mmdet3_pipeline import to_mmdet2_pipeline
from mmdeploy_ext.upstream.weights.convert.mmdet3_points import is_of_points, to_mmdet3d_1_0
from mmdeploy_ext.upstream.weights.convert.mmdet3_python import read_python_config
from mmdeploy_ext.upstream.weights.convert.mmdet3_refusals import (
    NO_BASE,
    NO_MODEL,
    NO_PIPELINE,
    OTHER_PACKAGE,
    check_types,
    number_of,
)

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
        raise ConfigError(
            f'{path}: _base_ {foreign[0]!r} is a file of another package; {ADVICE}'
            + (f'; {number_of(OTHER_PACKAGE)}' if foreign[0].startswith(CLASSIFIERS) else '')
        )
    bases = [path.parent / name for name in names]
    if missing := [base for base in bases if not base.is_file()]:
        raise ConfigError(f'{path}: _base_ {str(missing[0])!r}: no such file; {number_of(NO_BASE)}')
    return bases
