"""Reads pure-Python configs of mmengine (`with read_base():`) without mmengine.

An imported class or function becomes its dotted name, as mmengine writes it into a checkpoint. Source:
mmengine 0.10.7 `base/config.py`, `config/utils.py`.
"""

import ast
import copy
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mmcv.utils import ConfigDict

from mmdeploy_ext.base.config import nested_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.user_modules import is_block_of_bases, user_folders


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
