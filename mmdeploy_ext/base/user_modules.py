"""Modules of users' repositories that configs import: their folders, and why an import fails."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import itertools
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any

from mmdeploy_ext.base.commands import CHECKOUT
from mmdeploy_ext.base.errors import ConfigError, root_cause
from mmdeploy_ext.base.missing_packages import not_installed
from mmdeploy_ext.base.source_code import is_users_file

# The Python files of a folder that define the types of a config.


MOST_FILES = 20_000
SKIPPED_FOLDERS = ('site-packages', 'node_modules', '__pycache__', 'build')


def python_files(folder: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith('.') and name not in SKIPPED_FOLDERS
        )
        yield from (Path(directory, name) for name in sorted(files) if name.endswith('.py'))


def files_of_types(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Type -> file below a folder that defines it, preferably one that registers something."""
    if not (either := '|'.join(map(re.escape, names))):
        return {}
    pattern = re.compile(rf'^(?:[ \t]*class|def) ({either})\b', re.MULTILINE)
    registering: dict[str, Path] = {}
    not_registering: dict[str, Path] = {}
    for path in itertools.islice(python_files(folder), MOST_FILES):
        text = ''
        with contextlib.suppress(OSError):  # a link to nothing, as editors leave them, or a file of others
            text = path.read_text(encoding='utf-8', errors='replace')
        for name in pattern.findall(text):
            (registering if 'register_module' in text else not_registering).setdefault(name, path)
    return not_registering | registering


PACKAGE = CHECKOUT / 'mmdeploy_ext'
MACHINERY = (
    *(f'{os.sep}{folder}{os.sep}' for folder in ('importlib', os.path.join('mmcv', 'utils'))),
    *(f'{PACKAGE / name}{os.sep}' for name in ('base', 'upstream')),
)
"""Parts of paths of files that import or register modules."""
FITTING_VERSIONS = {'mmdet': range(3), 'mmdet3d': range(1, 2), 'mmseg': range(1)}
"""Library -> major versions that families work with; only mmdet3d has older copies."""
OLDEST_COPY = 0, 8
"""Oldest mmdet3d of a repository that is read for its own models, which no family takes."""


def has_copy(folder: Path, library: str) -> bool:
    return _major_version(folder / library) in FITTING_VERSIONS[library]


def is_older_copy(folder: Path, library: str) -> bool:
    major = _major_version(folder / library)
    return major is not None and major < FITTING_VERSIONS[library].start


def libraries_not_run(cfg: Any) -> dict[str, str]:
    """Copies of libraries that did not run -> library that did: {'mmdet3d 0.17.2': 'mmdet3d 1.0.0rc6'}."""
    filename = getattr(cfg, 'filename', None)
    if not filename or cfg.get('fork'):
        return {}
    not_run = {}
    for library, fitting in {'mmcv': range(2), **FITTING_VERSIONS}.items():
        for folder in user_folders(filename):
            major = _major_version(folder / library)
            if major is None or major >= fitting.stop:
                continue
            module = sys.modules.get(library)
            file = getattr(module, '__file__', None)
            if file and not _is_of(Path(file), folder, library):
                own = f'{library} {_version(folder / library)}'.strip()
                not_run[own] = f'{library} {getattr(module, "__version__", "")}'.strip()
            break
    return not_run


def not_run_text(not_run: Mapping[str, str]) -> str:
    return '; '.join(
        f"the repository's own {own} did not run: the installed {installed} ran in its place"
        for own, installed in not_run.items()
    )


def older_library(library: str) -> str:
    """'mmdet3d 0.15.0' if a repository's own copy is used that is older than families work with, or ''."""
    spec = _spec_of(library)
    folder = Path(spec.origin or '').resolve().parents[1] if spec is not None and spec.origin else None
    if library not in FITTING_VERSIONS or folder is None or not is_older_copy(folder, library):
        return ''
    return f'{library} {_version(folder / library)}'.strip()


def import_older_models() -> None:
    """Import the models of a repository's own older library, which no family imports."""
    for library in FITTING_VERSIONS:
        if older_library(library):
            importlib.import_module(f'{library}.models')


def has_own_models(folder: Path, library: str, types: Callable[[], Iterable[str]]) -> bool:
    """Whether an older copy defines types of a config's model that the installed library lacks."""
    if tuple(map(int, re.findall(r'\d+', _version(folder / library))[:2])) < OLDEST_COPY:
        return False
    with contextlib.suppress(Exception):  # it is read again, and then refused
        installed = Path(sysconfig.get_path('purelib'), library)
        own = files_of_types(folder / library, types())
        return not own.keys() <= files_of_types(installed, own).keys()
    return False


def _major_version(package_folder: Path) -> int | None:
    """0 for a copy without a version (mit-han-lab/bevfusion)."""
    if not (package_folder / '__init__.py').is_file():
        return None
    number = re.match(r'\d+', _version(package_folder))
    return int(number[0]) if number else 0


def _version(package_folder: Path) -> str:
    files = [package_folder / name for name in ('version.py', '__init__.py')]
    for file in files:
        text = file.read_text(encoding='utf-8') if file.is_file() else ''
        if found := re.search(r'^__version__\s*=\s*[\'"]([^\'"]+)', text, re.MULTILINE):
            return found[1]
    return ''


@contextlib.contextmanager
def without_older_copies(library: str) -> Iterator[None]:
    """Skip older copies on `sys.path` inside the block."""
    file = getattr(sys.modules.get(library), '__file__', None)
    if file and is_older_copy(folder := Path(file).resolve().parents[1], library):
        raise ConfigError(
            f'{library} was imported from {folder}, which is older than {FITTING_VERSIONS[library].start}.0; '
            f'this process needs the installed one: do not import this copy first'
        )
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not is_older_copy(Path(entry or '.'), library)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def named_imports(path: str, key: str, names: Sequence[str]) -> Iterator[None]:
    """Make modules of the user's tree importable, for good; a missing one in the block is a ConfigError."""
    find_modules(names, path)
    try:
        yield
    except ImportError as error:
        cause = root_cause(error)  # mmcv 1.7.2 catches it and raises an ImportError without a message
        if not isinstance(cause, ModuleNotFoundError) or not cause.name:
            raise
        package = cause.name.partition('.')[0]
        advice = not_installed(package, path)
        if cause.name != package:
            advice = f'the imported {package} has no such module; change the import'
        elif package in {str(name).partition('.')[0] for name in names}:
            folders = ', '.join(map(str, user_folders(path)[:2]))
            advice = (
                f'{package} is not in {folders} or the folders above the config: run in the folder '
                f'that contains {package}, or put the config below it'
            )
        raise ConfigError(f'{path}: {key}={list(names)}: {cause}{users_line(cause)}; {advice}') from error


def parsed_config(path: str) -> ast.Module:
    """Syntax tree of a config, empty if it is not Python."""
    try:
        return ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def is_block_of_bases(statement: ast.AST) -> bool:
    """Whether a statement is `with read_base():`, or its older form `if '_base_':`."""
    if isinstance(statement, ast.With):
        return ast.unparse(statement.items[0]) == 'read_base()'
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "'_base_'"


def is_python_config(tree: ast.Module) -> bool:
    """Whether mmengine reads a config as pure Python: it has a block of bases, or imports a `type`."""
    if any(map(is_block_of_bases, tree.body)):
        return True
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    types = (node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == 'type')
    return any(isinstance(value, ast.Name) and value.id in names for value in types)


def imported_modules(path: str) -> list[str]:
    """Dotted names of absolute imports anywhere in a config."""
    modules = []
    for node in ast.walk(parsed_config(path)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return modules


def user_folders(path: str) -> list[Path]:
    """Folders that may hold a config's modules: the current one, folders above the config, our checkout."""
    config, current = Path(path).resolve(), Path.cwd()
    folders = [folder for folder in dict.fromkeys([current, *config.parents]) if folder != CHECKOUT]
    return [*folders, CHECKOUT] if current == CHECKOUT or config.is_relative_to(CHECKOUT) else folders


def use_libraries_of(path: str, types: Callable[[], Iterable[str]]) -> None:
    """Prefer a repository's own mmdet, mmdet3d or mmseg to the installed one.

    A copy of mmdet3d before 1.0 runs only for models that the installed one lacks; `types()` are the types of
    the config's model.
    """
    fitting, older, folders = [], [], user_folders(path)
    for library in FITTING_VERSIONS:
        for folder in folders:
            is_older = is_older_copy(folder, library)
            if is_older and not has_own_models(folder, library, types):
                older.append(library)
                break
            if is_older or has_copy(folder, library):
                _take_first(library, folder, f'{path}: is a config of the repository {folder}')
                fitting.append(library)
                break
    for library in older:
        for copied in fitting:  # the installed library imports it while the repository is not on the path
            importlib.import_module(copied)
        with without_older_copies(library):
            importlib.import_module(library)


def find_modules(modules: Sequence[str], path: str) -> None:
    """Put the folder of a config's modules first on `sys.path`, for good, unless it is found already."""
    for module in map(str, modules):
        package = module.partition('.')[0]
        if package in sys.stdlib_module_names or package == 'mmdeploy_ext':
            continue
        place = Path(*module.split('.'))
        imported = getattr(sys.modules.get(package), '__file__', None)
        for folder in user_folders(path):
            if imported and (folder / package).is_dir() and not (folder / package / '__init__.py').is_file():
                continue  # a folder that only has the name of an imported package
            if (folder / place).is_dir() or (folder / f'{place}.py').is_file():
                _take_first(module, folder, f'{path}: imports {module} of {folder}')
                break


def _take_first(module: str, folder: Path, reason: str) -> None:
    names = module.split('.')
    for name in ('.'.join(names[: count + 1]) for count in range(len(names))):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and not _is_of(Path(file), folder, names[0]):
            raise ConfigError(
                f'{reason}, but this process has imported {name} from {Path(file).parent}: run one '
                f'command per repository'
            )
    spec = _spec_of(names[0])
    if spec is not None and _is_of(Path(spec.origin or spec.submodule_search_locations[0]), folder, names[0]):
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _spec_of(package: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except ValueError:
        return None


def _is_of(file: Path, folder: Path, package: str) -> bool:
    file = file.resolve()
    return file.is_relative_to((folder / package).resolve()) or file == (folder / f'{package}.py').resolve()


def import_failure(error: BaseException) -> str:
    """Message about a failed plugin import, with the user's file and line."""
    cause = error if str(error) else root_cause(error)
    users, all_places = _places(cause)
    message = f'{type(cause).__name__}: {cause}{_raised_in(cause, users or all_places)}'
    if isinstance(cause, ModuleNotFoundError) and users and importlib.util.find_spec(_package(cause)) is None:
        message += f'; {not_installed(_package(cause), users[-1][0].co_filename)}'
    return message


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or '').partition('.')[0] or '__main__'


def users_line(error: BaseException) -> str:
    """` (raised in FILE:LINE)` for the last line of the user's code, or ''."""
    cause = root_cause(error)
    return _raised_in(cause, _places(cause)[0])


def users_source(error: BaseException) -> str:
    """`: SOURCE` of the last line of the user's code, or ''."""
    places = _places(root_cause(error))[0]
    source = linecache.getline(places[-1][0].co_filename, places[-1][1]).strip() if places else ''
    return f': {source}' if source else ''


def _places(error: BaseException) -> tuple[list[tuple[CodeType, int]], list[tuple[CodeType, int]]]:
    places = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not _is_machinery(frame.f_code.co_filename)
    ]
    users = [place for place in places if is_users_file(Path(place[0].co_filename).resolve())]
    return users, places


def _raised_in(error: BaseException, places: Sequence[tuple[CodeType, int]]) -> str:
    if not places:
        return ''
    code, line = places[-1]
    file = code.co_filename
    for frame, _ in traceback.walk_tb(error.__traceback__):  # mmcv 1.7.2 runs a temporary copy of a config
        copied = frame.f_locals.get('temp_config_file')
        if copied is not None and copied.name == code.co_filename and 'filename' in frame.f_locals:
            file = str(frame.f_locals['filename'])
    return f' (raised in {file}:{line})'


def _is_machinery(file: str) -> bool:
    return file.startswith('<') or any(part in file for part in MACHINERY)
