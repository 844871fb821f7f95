"""Modules of users' repositories that configs import: which folder they are in, and why an import fails.

Repositories may hold copies of OpenMMLab's libraries. A copy whose major version families are written for is
imported in place of the installed library; older and newer copies are not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from mmdeploy_ext.core.commands import CHECKOUT
from mmdeploy_ext.core.errors import ConfigError, root_cause
from mmdeploy_ext.core.source_code import is_installed, is_users_file

PACKAGE = CHECKOUT / 'mmdeploy_ext'
MACHINERY = (
    *(f'{os.sep}{folder}{os.sep}' for folder in ('importlib', os.path.join('mmcv', 'utils'))),
    *(f'{PACKAGE / name}{os.sep}' for name in ('compat', 'core', 'models')),
)
"""Parts of the paths of files that import or register modules, and raise errors that other code caused."""
FITTING_VERSIONS = {'mmdet': range(3), 'mmdet3d': range(1, 2), 'mmseg': range(1)}
"""Library that repositories have copies of -> major versions of it that families work with.

Only mmdet3d has older copies: the ranges of the others begin at 0.
"""


def has_copy(folder: Path, library: str) -> bool:
    """Return whether a folder has a package `library`, a key of `FITTING_VERSIONS`, whose version fits."""
    return _major_version(folder / library) in FITTING_VERSIONS[library]


def is_older_copy(folder: Path, library: str) -> bool:
    """Return whether a folder has a package `library`, a key of `FITTING_VERSIONS`, that is too old."""
    major = _major_version(folder / library)
    return major is not None and major < FITTING_VERSIONS[library].start


def libraries_not_run(cfg: Any) -> dict[str, str]:
    """Return the repository's own copies of libraries that did not run -> the installed library that did.

    Both are named with their versions: {'mmdet3d 0.17.2': 'mmdet3d 1.0.0rc6'}. A copy that would be imported
    by the owner of `cfg`, an `mmcv.Config`, counts if this process imported the library from elsewhere; newer
    copies read no such configs. A `fork` of the config runs its copy in a process of its own.
    """
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
    """Return the sentence about `libraries_not_run`; '' if everything ran."""
    return '; '.join(
        f"the repository's own {own} did not run: the installed {installed} ran in its place"
        for own, installed in not_run.items()
    )


def _major_version(package_folder: Path) -> int | None:
    """Return the major version of a package, None if the folder is no package.

    A copy without a version number, such as that of mit-han-lab/bevfusion, counts as version 0.
    """
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
    """Inside the block imports of a library skip older copies on `sys.path`, such as those of PYTHONPATH=.

    Raises:
        ConfigError: an older copy is imported already.
    """
    file = getattr(sys.modules.get(library), '__file__', None)
    if file and is_older_copy(folder := Path(file).resolve().parents[1], library):
        raise ConfigError(
            f'{library} was imported from {folder}, which is older than {FITTING_VERSIONS[library].start}.0; '
            f'this process needs the installed one: import nothing of this copy before'
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
    """Let modules of the user's tree be imported, from here on; in the block a missing one is a ConfigError.

    Args:
        path: path of the config.
        key: key of the config that lists the modules, for messages.
        names: dotted names of the modules.

    Raises:
        ConfigError: one of the names, or a module that one of them imports, does not exist; the message
            names the config and the key that lists the names. Or one of `find_modules`, which runs first.
    """
    find_modules(names, path)
    try:
        yield
    except ImportError as error:
        cause = root_cause(error)  # mmcv 1.7.2 catches it and raises an ImportError without a message
        if not isinstance(cause, ModuleNotFoundError) or not cause.name:
            raise
        package = cause.name.partition('.')[0]
        spec = _spec_of(package) if cause.name != package else None
        if spec is not None:
            folders = ', '.join(map(str, spec.submodule_search_locations or [spec.origin]))
            version = getattr(sys.modules.get(package), '__version__', '')
            advice = (
                f'{package} {version} is {folders}, which has no such module: change the import to what this '
                f'version has'
            )
        elif package in {str(name).partition('.')[0] for name in names}:
            advice = f'the folder that {package} is in has to be on PYTHONPATH: PYTHONPATH=FOLDER COMMAND'
        else:
            advice = f'a module of {key} imports it: install it for {sys.executable}'
        raise ConfigError(f'{path}: {key}={list(names)}: {cause}{users_line(cause)}; {advice}') from error


def parsed_config(path: str) -> ast.Module:
    """Return the syntax tree of a config; it is empty if the file is not Python, which its reader reports.

    OSError: it cannot be read.
    """
    try:
        return ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def imported_modules(path: str) -> list[str]:
    """Return the dotted names of the modules that a config imports anywhere, without relative imports.

    `import a.b` and `from a.b import c` give 'a.b', some twice. The list is empty if the file is not Python.
    """
    modules = []
    for node in ast.walk(parsed_config(path)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return modules


def user_folders(path: str) -> list[Path]:
    """Return the folders that may hold the modules of a config: the current one, and those above the file.

    `path` is that of the config. It is the order in which research repositories find them, whose scripts run
    in their root with `PYTHONPATH=.`. A checkout of this project, whose `projects/` has the names of many of
    them, comes last. It is left out unless the config is in it or the current folder is its root.
    """
    config, current = Path(path).resolve(), Path.cwd()
    folders = [folder for folder in dict.fromkeys([current, *config.parents]) if folder != CHECKOUT]
    return [*folders, CHECKOUT] if current == CHECKOUT or config.is_relative_to(CHECKOUT) else folders


def use_libraries_of(path: str) -> None:
    """Put a repository's own copy of mmdet, mmdet3d or mmseg before the installed one, for its configs.

    In place of a copy that is older than families are written for the installed library is imported, here;
    a family that reads configs of such a copy starts a process of its own, which imports the copy. `path` is
    that of a config.

    Raises:
        ConfigError: this process has imported the library from elsewhere already.
        ImportError: the library of an older copy is not installed, or refuses the repository's copy of
            another one.
    """
    fitting, older = [], []
    for library in FITTING_VERSIONS:
        for folder in user_folders(path):
            if is_older_copy(folder, library):
                older.append(library)
                break
            if has_copy(folder, library):
                _take_first(library, folder, f'{path}: is a config of the repository {folder}')
                fitting.append(library)
                break
    for library in older:
        for copied in fitting:  # the installed library imports it while the repository is not on the path
            importlib.import_module(copied)
        with without_older_copies(library):
            importlib.import_module(library)


def find_modules(modules: Sequence[str], path: str) -> None:
    """Put the folder that holds a config's modules first on `sys.path`, for good; see `user_folders`.

    That is left out if they would be imported from this folder already.
    `mm2onnx` starts with none of these folders on it, and the scripts of `tools/` with their own. Installed
    modules, such as `mmdeploy_ext.models.mmdet`, need no folder.

    Args:
        modules: dotted names of the modules.
        path: path of the config.

    Raises:
        ConfigError: this process has imported a module of the same name from another folder, or the module is
            only in this project's checkout, and the config is of another tree.
    """
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
        else:
            _refuse_module_of_checkout(module, path)


def _take_first(module: str, folder: Path, reason: str) -> None:
    """Put a folder first on `sys.path`, so that a module is imported from it.

    ConfigError: the module, or a package that it is in, has been imported from elsewhere; the message begins
    with `reason`.
    """
    names = module.split('.')
    for name in ('.'.join(names[: count + 1]) for count in range(len(names))):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and not _is_of(Path(file), folder, names[0]):
            raise ConfigError(
                f'{reason}, but this process has imported {name} from {Path(file).parent}: one process '
                f'serves one repository; run each of them by a command of its own'
            )
    spec = _spec_of(names[0])
    if spec is not None and _is_of(Path(spec.origin or spec.submodule_search_locations[0]), folder, names[0]):
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _spec_of(package: str) -> ModuleSpec | None:
    """Return the spec of a package; None if it has none, such as a stub that code put into `sys.modules`."""
    try:
        return importlib.util.find_spec(package)
    except ValueError:
        return None


def _is_of(file: Path, folder: Path, package: str) -> bool:
    """Return whether a file or folder is a package, or a module, of a folder, or inside of it."""
    file = file.resolve()
    return file.is_relative_to((folder / package).resolve()) or file == (folder / f'{package}.py').resolve()


def _refuse_module_of_checkout(module: str, path: str) -> None:
    """Raise a ConfigError if a config of another tree would import a module of this project's `projects/`.

    An installed mm2onnx has no `projects/`: `CHECKOUT` is then the folder of all installed packages.
    """
    is_checkout = (CHECKOUT / 'pyproject.toml').is_file()
    if not is_checkout or CHECKOUT in user_folders(path):
        return
    place = CHECKOUT / Path(*module.split('.'))
    if not place.is_dir() and not place.with_name(f'{place.name}.py').is_file():
        return
    package = module.partition('.')[0]
    spec = _spec_of(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if str(CHECKOUT / package) in map(str, folders):
        raise ConfigError(
            f'{path}: imports {module}, which is neither in {Path.cwd()} nor in a folder above the config; '
            f'{CHECKOUT / "projects"} of mm2onnx is not meant: run the command in the root of the repository '
            f'that has {module}'
        )


def import_failure(error: BaseException) -> str:
    """Return the message of an error of importing a plugin, with the file and line that raised it.

    If a registry of mmcv refused a class, the message has the class that has its name. Of an error without a
    text the first error of its chain is described. The place is the last line of a user's code, or that of a
    library if there is none; it is left out if it is only in `MACHINERY`.
    """
    cause = error if str(error) else root_cause(error)
    text = f'{type(cause).__name__}: {cause}'
    if isinstance(cause, KeyError):
        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        if conflict := _registration_conflict(frames):
            return f'{text}: {conflict}'
    users, all_places = _places(cause)
    return text + _raised_in(cause, users or all_places)


def users_line(error: BaseException) -> str:
    """Return ` (raised in FILE:LINE)`, the last line of a user's code in the first error of a chain.

    It is '' if no line of a user was run.
    """
    cause = root_cause(error)
    return _raised_in(cause, _places(cause)[0])


def _places(error: BaseException) -> tuple[list[tuple[CodeType, int]], list[tuple[CodeType, int]]]:
    """Return the lines on the way of an error: those of users' code, and all that are not `MACHINERY`."""
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


def _registration_conflict(frames: Sequence[FrameType]) -> str:
    """Return which class an mmcv registry refused, and which has its name; '' if no registry refused one."""
    for frame in reversed(frames):
        registry, refused = frame.f_locals.get('self'), frame.f_locals.get('module')
        registered = getattr(registry, 'module_dict', None)
        if not isinstance(registered, dict) or refused is None:
            continue
        names = frame.f_locals.get('module_name') or getattr(refused, '__name__', '')
        names = [names] if isinstance(names, str) else names
        namesake = next((registered[name] for name in names if name in registered), None)
        if namesake is None:
            continue
        module = str(getattr(namesake, '__module__', ''))
        file = getattr(sys.modules.get(module), '__file__', None) or module
        callers = (caller.f_code.co_filename for caller in reversed(frames))
        user_file = next((f' of {caller}' for caller in callers if not _is_machinery(caller)), '')
        advice = 'import one of them alone, in a process of its own'
        package = module.partition('.')[0]
        if package in FITTING_VERSIONS and is_installed(package, Path(file)):
            advice = (
                f'put a version of {package} that lacks it, for which the repository was written, as '
                f'{package}/ into the folder of the command, or take another name'
            )
        return (
            f'{getattr(refused, "__qualname__", refused)}{user_file} cannot have that name, which '
            f'{getattr(namesake, "__qualname__", namesake)} of {file} has; {advice}'
        )
    return ''


def _is_machinery(file: str) -> bool:
    return file.startswith('<') or any(part in file for part in MACHINERY)
