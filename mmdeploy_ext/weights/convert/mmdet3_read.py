"""Configs of mmdet 3 read without mmengine.

What mmengine adds to mmcv 1.7.2's way of reading is that a file may use what its bases said: `_base_.name`,
and `{{_base_.name}}`. As with mmcv, a config is Python and is run: read those that you would train with.
A checkpoint of mmengine has its whole config as text, `meta.cfg`: that is read as data, and not run.
"""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.weights.checkpoint import load_checkpoint

ADVICE = (
    'give the whole config: the checkpoint, in which mmengine keeps it, or what a training writes into its '
    'folder (TIME/vis_data/config.py)'
)
CHECKPOINTS = ('.pth', '.pt', '.ckpt')
BASE_VALUE = re.compile(r'[\'"]?\{\{\s*(_base_[\w.]*)\s*\}\}[\'"]?')
OTHER_VALUE = re.compile(r'\{\{\s*(\w+)\s*\}\}')


def read_config3(path: str | Path) -> Any:
    """Return a config of mmdet 3 with its bases, as an mmcv `Config`.

    Args:
        path: of a config, or of a checkpoint that mmengine wrote.

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
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f'{path}: syntax error: {error}') from error
    bases = _take_bases(path, tree)
    merged: dict[str, Any] = {}
    for base in bases:
        merged.update(_values(base))
    scope: dict[str, Any] = {'_base_': ConfigDict(copy.deepcopy(merged)), '__file__': str(path)}
    try:
        exec(compile(tree, str(path), 'exec'), scope)
    except Exception as error:
        raise ConfigError(f'{path}: cannot be read: {type(error).__name__}: {error}') from error
    own = {
        key: copy.deepcopy(value)  # two names of one dict: mmcv takes `_delete_` out of it
        for key, value in scope.items()
        if not key.startswith('__')
        and key != '_base_'
        and not callable(value)
        and not isinstance(value, ModuleType)
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
