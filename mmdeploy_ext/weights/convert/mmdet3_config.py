"""Configs of mmdet 3: read without mmengine, and as configs of mmdet 2.28, to export, prove and test with.

What mmengine adds to mmcv 1.7.2's way of reading is that a file may use what its bases said: `_base_.name`,
and `{{_base_.name}}`. As with mmcv, a config is Python and is run: read those that you would train with.
A checkpoint of mmengine has its whole config as text, `meta.cfg`: that is read as data, and not run.
"""

import ast
import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdeploy_ext.core.config import is_config3
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.weights.checkpoint import load_checkpoint
from mmdeploy_ext.weights.convert.mmdet3_model import PLUGINS, model2, parts, without_scope
from mmdeploy_ext.weights.convert.mmdet3_pipeline import pipeline2

DATASETS = ('CocoDataset', 'CityscapesDataset', 'DeepFashionDataset', 'LVISV05Dataset', 'LVISV1Dataset')
"""Data sets that both have, with one file of annotations and one folder of pictures."""
DATASET_KEYS = {
    *('type', 'data_root', 'ann_file', 'data_prefix', 'test_mode', 'pipeline', 'metainfo', 'backend_args'),
    *('filter_cfg', 'return_classes'),
}
ADVICE = (
    'give the whole config: the checkpoint, in which mmengine keeps it, or what a training writes into its '
    'folder (TIME/vis_data/config.py)'
)
CHECKPOINTS = ('.pth', '.pt', '.ckpt')
BASE_VALUE = re.compile(r'[\'"]?\{\{\s*(_base_[\w.]*)\s*\}\}[\'"]?')
OTHER_VALUE = re.compile(r'\{\{\s*(\w+)\s*\}\}')


def config2(cfg: Any) -> Any:
    """Return a config of `read_config3` as one of mmdet 2.28: model, test pipeline and data set of tests.

    What only training and mmengine's Runner read (`optim_wrapper`, `default_hooks`, ...) is left out.

    Raises:
        ConfigError: names the file, and the part or key that mmdet 2.28 has not.
    """
    from mmcv import Config

    model, name = cfg.get('model'), cfg.filename
    if not isinstance(model, dict):
        raise ConfigError(f'{name}: model={model!r}, expected a dict with `type`')
    if not is_config3(cfg):
        raise ConfigError(
            f'{name}: is no config of mmdet 3: it has neither data_preprocessor nor test_dataloader'
        )
    try:
        own = model2(_plain(model))  # first: what is refused by the name of a detector
        given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        preprocessor = without_scope('model.data_preprocessor', _plain(given))
        steps = without_scope('test_pipeline', _steps(cfg))
        data = dict(test=_dataset(cfg, pipeline2(steps, preprocessor)))
        plugin = PLUGINS.get(own['type'])
        imports = dict(custom_imports=dict(imports=[plugin], allow_failed_imports=False)) if plugin else {}
        result = dict(model=own, data=data, **imports)
    except ConfigError as error:
        raise ConfigError(f'{name}: {error}') from error
    check_known(name, own)
    return Config(result, cfg_text=cfg.text, filename=name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _test_dataset(cfg: Any) -> dict[str, Any]:
    loader = cfg.get('test_dataloader') or {}
    return _plain(loader.get('dataset') or {}) if isinstance(loader, dict) else {}


def _steps(cfg: Any) -> list[dict[str, Any]]:
    found = _test_dataset(cfg).get('pipeline') or _plain(cfg.get('test_pipeline'))
    if not found:
        raise ConfigError('has neither test_dataloader.dataset.pipeline nor test_pipeline; expected one')
    return found


def _dataset(cfg: Any, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `data.test`; of a kind of data set that is not known here only the classes are taken."""
    given = without_scope('test_dataloader.dataset', {**_test_dataset(cfg), 'pipeline': []})
    names = given.get('metainfo') or {}
    classes = names.get('classes') or names.get('CLASSES')
    own = dict(classes=tuple(classes)) if classes else {}
    if given.get('type') not in DATASETS:
        return dict(type='CocoDataset', ann_file='annotations.json', img_prefix='', **own, pipeline=pipeline)
    if other := sorted(given.keys() - DATASET_KEYS):
        raise ConfigError(f'test_dataloader.dataset.{other[0]}={given[other[0]]!r} is not known here')
    if given.get('backend_args'):
        raise ConfigError(
            f'test_dataloader.dataset.backend_args={given["backend_args"]!r}: expected None, local files'
        )
    root = Path(given.get('data_root') or '')
    prefix = (given.get('data_prefix') or {}).get('img', '')
    return dict(
        type=given['type'],
        ann_file=str(root / given.get('ann_file', '')),
        img_prefix=str(root / prefix),
        **own,
        pipeline=pipeline,
    )


def check_known(name: str, model: Mapping[str, Any]) -> None:
    """Refuse parts that mmdet 2.28 has not; the ConfigError names the file, the key and the type."""
    known = set(_known_types())
    for path, part in parts(dict(model), 'model'):
        kind = part['type']
        if kind[:1].isupper() and kind not in known:  # others are options: nms, conv, dilation
            raise ConfigError(f'{name}: {path}.type={kind!r}: mmdet 2.28 has no part of this name')


def _known_types() -> Iterable[str]:
    """Yield the names of all parts that a model of mmdet 2.28 is built of."""
    import mmcv.cnn.bricks.registry as bricks
    import mmdet.core  # noqa: F401  (assigners, coders and samplers register)
    from mmcv.cnn import MODELS as CNN
    from mmcv.utils import Registry
    from mmdet.core import bbox, mask  # noqa: F401
    from mmdet.core.anchor.builder import PRIOR_GENERATORS
    from mmdet.core.bbox.builder import BBOX_ASSIGNERS, BBOX_CODERS, BBOX_SAMPLERS
    from mmdet.core.bbox.iou_calculators.builder import IOU_CALCULATORS
    from mmdet.core.bbox.match_costs.builder import MATCH_COST
    from mmdet.models.builder import MODELS
    from mmdet.models.utils.builder import LINEAR_LAYERS, TRANSFORMER

    found = [MODELS, CNN, LINEAR_LAYERS, TRANSFORMER, PRIOR_GENERATORS, IOU_CALCULATORS, MATCH_COST]
    found += [BBOX_ASSIGNERS, BBOX_CODERS, BBOX_SAMPLERS]
    found += [one for one in vars(bricks).values() if isinstance(one, Registry)]
    yield from ('Pretrained', 'Normal', 'Xavier', 'Kaiming', 'Constant', 'Uniform', 'TruncNormal')
    yield from ('Caffe2Xavier', 'RoIAlign', 'RoIPool', 'SimpleRoIAlign')
    yield from ('DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack')
    for registry in found:
        yield from registry.module_dict


def read_config3(path: str | Path) -> Any:
    """Return a config of mmdet 3 with its bases, or that in a checkpoint of mmengine, as an mmcv `Config`.

    Raises:
        CheckpointError: see `load_checkpoint`.
        ConfigError: no such file, a syntax error, a base that is not there, or a way of writing configs that
            mmcv 1.7.2 does not have: `with read_base():`, bases of other packages (`mmdet::...`).
    """
    from mmcv import Config

    if Path(path).suffix in CHECKPOINTS:
        values, text = _kept(str(path))
        return Config(values, cfg_text=text, filename=str(path))
    return Config(_values(Path(path)), filename=str(path))


def _kept(path: str) -> tuple[dict[str, Any], str]:
    """Return the values and the text of the config that a checkpoint keeps, none of which is run."""
    text = load_checkpoint(path).meta.get('cfg')
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f'{path}: keeps no config in meta.cfg; give the config itself')
    try:
        parts = ast.parse(text).body
        return {_name(part): _value(part.value) for part in parts}, text
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{path}: meta.cfg is no plain config: {error}; give the config itself') from error


def _name(part: ast.stmt) -> str:
    if isinstance(part, ast.Assign) and [type(target) for target in part.targets] == [ast.Name]:
        return part.targets[0].id
    raise ValueError(f'line {part.lineno} is no `name = value`')


def _is_dict_call(node: ast.expr) -> bool:
    named = isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args
    return named and all(word.arg for word in node.keywords)


def _value(node: ast.expr) -> Any:
    """Return a value of literals and of `dict(...)`."""
    if _is_dict_call(node):
        return {word.arg: _value(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict) and all(node.keys):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [list, tuple][isinstance(node, ast.Tuple)](map(_value, node.elts))
    return ast.literal_eval(node)


def _values(path: Path) -> dict[str, Any]:
    from mmcv import Config
    from mmcv.utils import ConfigDict

    if not path.is_file():
        raise ConfigError(f'{path}: no such config file')
    try:
        tree = ast.parse(_without_braces(path), str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{path}: syntax error: {error}') from error
    merged: dict[str, Any] = {}
    for base in _take_bases(path, tree):
        merged.update(_values(base))
    scope: dict[str, Any] = {'_base_': ConfigDict(copy.deepcopy(merged)), '__file__': str(path)}
    try:
        exec(compile(tree, str(path), 'exec'), scope)
    except Exception as error:
        raise ConfigError(f'{path}: cannot be read: {type(error).__name__}: {error}') from error
    own = {
        key: copy.deepcopy(value)  # two names of one dict: mmcv takes `_delete_` out of it
        for key, value in scope.items()
        if not (key.startswith('__') or key == '_base_' or callable(value) or isinstance(value, ModuleType))
    }
    try:
        return Config._merge_a_into_b(own, merged)
    except (TypeError, KeyError) as error:
        raise ConfigError(f'{path}: does not go with its bases: {error}') from error


def _without_braces(path: Path) -> str:
    text = BASE_VALUE.sub(r'\1', path.read_text(encoding='utf-8'))
    if other := OTHER_VALUE.search(text):
        raise ConfigError(f'{path}: {other.group()} is filled in by mmengine; {ADVICE}')
    return text


def _take_bases(path: Path, tree: ast.Module) -> list[Path]:
    """Return the files of `_base_`, and take its statement out of the code."""
    if any(isinstance(part, ast.With) for part in tree.body):
        raise ConfigError(f'{path}: `with read_base():` is a config that only mmengine reads; {ADVICE}')
    found = [part for part in tree.body if isinstance(part, ast.Assign) and _is_base(part)]
    tree.body = [part for part in tree.body if part not in found]
    if not found:
        return []
    try:
        names = ast.literal_eval(found[-1].value)
    except ValueError as error:
        raise ConfigError(f'{path}: _base_ is no list of files: {error}') from error
    names = names if isinstance(names, list | tuple) else [names]
    for name in names:
        if '::' in str(name):
            raise ConfigError(f'{path}: _base_ {name!r} is a file of another package; {ADVICE}')
    return [path.parent / name for name in names]


def _is_base(part: ast.Assign) -> bool:
    return [getattr(target, 'id', None) for target in part.targets] == ['_base_']
