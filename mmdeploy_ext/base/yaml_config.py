"""YAML configs of mit-han-lab's repositories, as torchpack reads them, without torchpack (it starts MPI)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import ConfigError, one_line

SUFFIXES = '.yaml', '.yml'


def read_yaml_config(path: str) -> dict[str, Any]:
    """Read a YAML config over the `default.yaml` of its repository's folders; `${EXPRESSION}` runs as Python.

    Its root is the nearest folder above with `.git` or named `configs`, else the current one, else the
    config's own.

    Source: torchpack 0.3.1, `Config.load(path, recursive=True)`, and `recursive_eval` of
    mit-han-lab/bevfusion 326653d, mmdet3d/utils/config.py.
    """
    file = Path(path).absolute()
    defaults = [folder / f'default{file.suffix}' for folder in reversed(_folders_of_repository(file))]
    values: dict[str, Any] = {}
    for source in [*(default for default in defaults if default.is_file() and default != file), file]:
        _update(values, _mapping(source))
    names = _with_attributes(copy.deepcopy(values))
    return {key: _evaluated(value, names, f'{path}: {key}') for key, value in values.items()}


def _folders_of_repository(file: Path) -> list[Path]:
    parents = list(file.parents)
    marked = (folder for folder in parents if (folder / '.git').exists() or folder.name == 'configs')
    roots = [*marked, Path.cwd(), file.parent]
    root = next(folder for folder in roots if folder in parents)
    return parents[: parents.index(root) + 1]


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: is not YAML: {one_line(error)}') from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: is a {type(content).__name__}; expected keys and values')
    return content


def _update(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                values[key] = {}
            _update(values[key], value)
        else:
            values[key] = value


def _with_attributes(value: Any) -> Any:
    from mmcv import ConfigDict

    if isinstance(value, dict):
        return ConfigDict({key: _with_attributes(entry) for key, entry in value.items()})
    return [_with_attributes(entry) for entry in value] if isinstance(value, list) else value


def _evaluated(value: Any, names: dict[str, Any], place: str, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {key: _evaluated(entry, names, f'{place}.{key}', depth) for key, entry in value.items()}
    if isinstance(value, list):
        return [_evaluated(entry, names, f'{place}[{index}]', depth) for index, entry in enumerate(value)]
    if not (isinstance(value, str) and value.startswith('${') and value.endswith('}')):
        return value
    if depth > len(names):
        raise ConfigError(f'{place}: {value} refers to itself')
    try:
        result = eval(value[2:-1], dict(names))
    except Exception as error:  # an expression may raise anything
        raise ConfigError(f'{place}: {value}: {type(error).__name__}: {error}') from error
    return _evaluated(copy.deepcopy(result), names, place, depth + 1)
