"""Where a class or function is defined, whose it is, and versions of the packages that an export needs."""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import sys
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmdeploy_ext
from mmdeploy_ext.core.typed_json import LEFT_OUT, JsonDataclass

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from importlib.metadata import Distribution


DISTRIBUTIONS = {
    'mmcv': ('mmcv-full', 'mmcv'),
    'mmdet': ('mmdet',),
    'mmdet3d': ('mmdet3d',),
    'mmseg': ('mmsegmentation',),
}
"""Package of OpenMMLab -> distributions that install it."""
LIBRARIES = ('torch', 'torchvision', 'numpy', 'addict', 'spconv', 'cumm', 'builtins')
"""Further packages that are libraries wherever they are."""
PACKAGE_FOLDERS = ('site-packages', 'dist-packages')
"""Names of the folders of installed packages, also those of a user or of another environment."""
OURS = Path(__file__).resolve().parents[1]
"""Folder of this project's package."""
PYTHON = Path(os.__file__).parent
"""Folder of Python's own modules; without a virtual environment, installed packages are below it."""
TYPED = ('<string>', '<stdin>', '<console>', '<python-input-', '<ipython-input-')
"""Beginnings of the file names of code without a file: of `exec` and `python -c`, a pipe, consoles."""


def is_in_package(path: Path) -> bool:
    """Return whether a path is in a folder of installed packages; links are not followed."""
    return any(folder in path.parts for folder in PACKAGE_FOLDERS)


def is_typed(file: str) -> bool:
    """Return whether code of this file name is a user's without a file, see `TYPED`, not that of a tool."""
    return file.startswith(TYPED)


def is_users_file(path: Path) -> bool:
    """Return whether a path is in no folder of installed packages, of Python's modules, or of this package.

    Links are not followed.
    """
    return not is_in_package(path) and not is_ours(path) and not path.is_relative_to(PYTHON)


def is_ours(path: Path) -> bool:
    """Return whether a path is in this package, as it was imported or with links followed."""
    return path.is_relative_to(OURS) or path.is_relative_to(Path(__file__).parents[1])


def is_users(defined: Any) -> bool:
    """Return whether a class, without its bases, or a Python function is of no library and not ours.

    A library is an installed package; of OpenMMLab's also a file that was edited in place is the user's.
    """
    package, file = defined.__module__.partition('.')[0], file_of(defined)
    if file is None or is_ours(file) or is_ours(file.resolve()) or package in LIBRARIES:
        return False
    return not is_installed(package, file) if package in DISTRIBUTIONS else is_users_file(file)


def file_of(defined: Any) -> Path | None:
    """Return the file that a class or a Python function was defined in; None of a class of C.

    That of a class is the file of one of its methods, if it has methods in a file: another module of the same
    name may have been imported since. Of one that was typed at a console it is a name in angle brackets.
    """
    if not isinstance(defined, type):
        return Path(defined.__code__.co_filename)
    without_file = None
    for value in vars(defined).values():
        function = inspect.unwrap(getattr(value, '__func__', value)) if callable(value) else None
        code = getattr(function, '__code__', None)
        if code is not None and function.__qualname__ == f'{defined.__qualname__}.{code.co_name}':
            if not code.co_filename.startswith('<'):
                return Path(code.co_filename)
            without_file = Path(code.co_filename)
    file = getattr(sys.modules.get(defined.__module__), '__file__', None)
    return Path(file) if file and file.endswith('.py') else without_file


def place_of(defined: Any) -> tuple[str, int]:
    """Return file and line of a class or a Python function; the line is 0 if it cannot be read.

    The file is relative to the folder that its top-level package is in, such as `projects/plugin/head.py`.
    """
    path, module = file_of(defined), defined.__module__
    if path is None:
        return f'{module.replace(".", "/")}.py', 0
    depth = module.count('.') + (path.stem == '__init__') if module != '__main__' else 0
    file = Path(*path.parts[-(depth + 1) :]).as_posix()
    if isinstance(defined, type):
        return file, _classes_of_file(path).get(defined.__qualname__, 0)
    return file, defined.__code__.co_firstlineno


def is_installed(package: str, path: str | Path) -> bool:
    """Return whether a Python file is one that a distribution of OpenMMLab installed, and nobody has edited.

    Copies of mmdet in a user's repository, editable installs, files that were changed in place, files that
    were put into the installed package, and those of another ending than .py are not. Of a distribution
    without a list of its files all in the package are.

    Args:
        package: name of the package that the file is in; only the keys of `DISTRIBUTIONS` have such files.
        path: the file, which exists.
    """
    root, digests = _installed_files(package)
    if root is None:
        return False
    file = os.path.abspath(path)
    resolved = _resolved(file)
    if not resolved.is_relative_to(root) or not digests:  # installed without a list of its files
        return resolved.is_relative_to(root)
    name = resolved.relative_to(root.parent).as_posix()
    return name in digests and _sha256_urlsafe(file, os.stat(file).st_mtime_ns) == digests[name]


def is_in_library(kind: type) -> bool:
    """Return whether the installed package of OpenMMLab has a class of the module and name of `kind`.

    That is so of the library's classes in a user's copy of the package, whatever their code is, and not of a
    class that the user added to the copy. If the package is used from its checkout, or is not installed, it
    is so of all.
    """
    package, *modules = kind.__module__.split('.')
    if package not in DISTRIBUTIONS:
        return False
    root, _ = _installed_files(package)
    if root is None:
        return True
    path = root.joinpath(*modules)
    path = path / '__init__.py' if path.is_dir() else path.with_name(f'{path.name}.py')
    return kind.__qualname__ in _classes_of_file(path)


def copied_libraries() -> dict[str, Path]:
    """Return package of OpenMMLab -> its folder, of each that is imported from no installed distribution."""
    files = ((package, getattr(sys.modules.get(package), '__file__', None)) for package in DISTRIBUTIONS)
    return {package: Path(file).parent for package, file in files if file and not is_installed(package, file)}


def is_copied(kind: type) -> bool:
    """Return whether a class is a library's in a copy of the library, not one that the user added to it."""
    package = kind.__module__.partition('.')[0]
    if package not in copied_libraries():
        return False
    root, _ = _installed_files(package)
    return root is None or not root.is_dir() or is_in_library(kind)


@functools.lru_cache(maxsize=256)
def _classes_of_file(path: Path) -> dict[str, int]:
    """Return the line of each class of a file by its qualified name; {} if the file cannot be read."""
    lines: dict[str, int] = {}

    def collect(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = f'{prefix}{getattr(child, "name", "")}'
            if isinstance(child, ast.ClassDef):
                lines[name] = child.lineno
                collect(child, f'{name}.')
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                collect(child, f'{name}.<locals>.')
            else:
                collect(child, prefix)

    try:
        collect(ast.parse(path.read_bytes()), '')
    except (OSError, SyntaxError, ValueError):
        return {}
    return lines


@functools.lru_cache
def _installed_files(package: str) -> tuple[Path | None, dict[str, str]]:
    """Return the folder of an installed package, and path -> hash of its files as they were installed.

    None and nothing of a package that is not OpenMMLab's, or that is used from its checkout.
    """
    from importlib import metadata  # a quarter of the time of `mm2onnx --help`

    for name in DISTRIBUTIONS.get(package, ()):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        digests = {}
        for line in (distribution.read_text('RECORD') or '').splitlines():
            path, _, rest = line.rpartition(',sha256=')
            if path.endswith('.py'):
                digests[path] = rest.split(',')[0]
        folder = Path(str(distribution.locate_file(package))).resolve()
        if not digests and (folder.parent / 'setup.py').is_file():  # an `.egg-link` leads to the checkout
            return None, {}
        return folder, digests
    return None, {}


@functools.lru_cache(maxsize=8192)
def _resolved(file: str) -> Path:
    """Return an absolute path with its links followed: once in a process, as it is slow."""
    return Path(file).resolve()


@functools.lru_cache(maxsize=1024)
def _sha256_urlsafe(file: str, _modified_ns: int) -> str:
    """Return the hash of a file as the RECORD of a wheel has it."""
    digest = hashlib.sha256(Path(file).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b'=').decode()


@dataclasses.dataclass(frozen=True)
class ModelClass(JsonDataclass):
    """A class of a model that no installed library defines.

    Attributes:
        name: qualified name of the class.
        file: path of the file that defines it, relative to the folder that it was imported from.
        sha256: hash of that file; '' if it cannot be read.
        ours: whether it is a class of `mmdeploy_ext`, not of the user.
        line: number of its first line; 0 if that cannot be read, and in the metadata of a file.
    """

    name: str
    file: str
    sha256: str
    ours: bool
    line: int = dataclasses.field(default=0, compare=False, metadata={LEFT_OUT: True})

    @property
    def place(self) -> str:
        """Where it is defined, such as `plugin/head.py:120`."""
        return f'{self.file}:{self.line}' if self.line else self.file

    def to_json(self) -> dict[str, Any]:
        """Return all fields but the line, which moves with what stands above it."""
        return dict(name=self.name, file=self.file, sha256=self.sha256, ours=self.ours)


def model_classes(model: Any) -> tuple[ModelClass, ...]:
    """Return the classes of a `torch.nn.Module` that no installed library has, bases among them, each once.

    They come in the order in which modules appear.
    """
    kinds = ((kind, file_of(kind)) for kind in classes_of(model))
    return tuple(
        ModelClass(kind.__qualname__, *_file_facts(kind, file), place_of(kind)[1])
        for kind, file in kinds
        if file is not None and (is_users(kind) or is_ours(file.resolve()))
    )


def _file_facts(kind: type, file: Path) -> tuple[str, str, bool]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ''
    return place_of(kind)[0], digest, is_ours(file.resolve())


def classes_of(model: Any) -> dict[type, None]:
    """Return the classes, and their bases, of the modules of a model and of their attributes, each once."""
    return dict.fromkeys(base for _, part in parts_of(model) for base in type(part).__mro__)


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of each module of a model, and of each attribute of one.

    Of an attribute that is a list or a tuple its entries are yielded; dicts and attributes of attributes are
    not looked at.
    """
    for path, module in model.named_modules():
        yield path, module
        for name, value in vars(module).items():
            several = value if isinstance(value, list | tuple) else [value]
            yield from ((f'{path}.{name}'.lstrip('.'), entry) for entry in several)


def files_of_users_classes(model: Any) -> set[Path]:
    """Return the files, absolute, that define the user's classes in a `torch.nn.Module`."""
    return {file.resolve() for kind in classes_of(model) if is_users(kind) and (file := file_of(kind))}


def is_users_class(kind: type) -> bool:
    """Return whether a class or a base of it is the user's, see `is_users`."""
    return any(is_users(base) for base in kind.__mro__)


def users_class(kind: type) -> str:
    """Return name and place of a class, such as `MyResize (plugin/steps.py:12)`, or of the user's base of it.

    '' unless it is the user's; a library's class in a copy of the library is not.
    """
    owner = next((base for base in kind.__mro__ if is_users(base) and not is_copied(base)), None)
    return '' if owner is None else f'{owner.__name__} ({_place(owner)})'


def users_method(kind: type, name: str) -> str:
    """Return class, name and place of a method of `kind`, such as `Head.get_bboxes (plugin/head.py:120)`.

    '' unless the user's code defines it; a library's class in a copy of the library does not count as such.
    """
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    if owner is None or is_copied(owner):
        return ''
    value = vars(owner)[name]
    function = inspect.unwrap(getattr(value, '__func__', value))
    defined = function if inspect.isfunction(function) else owner
    if not is_users(owner) and not is_users(defined):
        return ''
    place = _place(defined)
    return f'{owner.__name__}.{name} ({place})'


def _place(defined: Any) -> str:
    file, line = place_of(defined)
    return f'{file}:{line}'


def changed_files(exported: Iterable[Mapping[str, Any]], present: Iterable[ModelClass]) -> list[str]:
    """Return the files of the user's classes that are others than when a file was exported.

    Args:
        exported: entries of the file's metadata, see `ModelClass.to_json`.
        present: the classes of the model in this process.
    """
    before = {entry['file']: entry['sha256'] for entry in exported if not entry['ours']}
    after = {entry.file: entry.sha256 for entry in present if not entry.ours}
    return sorted(file for file in {*before, *after} if before.get(file) != after.get(file))


PACKAGES = {
    'torch': 'torch',
    'mmcv-full': 'mmcv',
    'mmdet': 'mmdet',
    'mmdet3d': 'mmdet3d',
    'onnx': 'onnx',
    'onnxruntime': 'onnxruntime',
    'onnxslim': 'onnxslim',
}
"""Distribution -> the module that it installs."""


def versions() -> dict[str, str]:
    """Return 'mm2onnx' and each distribution of `PACKAGES` that is imported or installed -> its version.

    That of an imported module is its own: another copy than the installed one may have been imported.
    Packages that are neither imported nor installed have no entry.
    """
    by_package = {'mm2onnx': mmdeploy_ext.__version__}
    for package, module in PACKAGES.items():
        version = getattr(sys.modules.get(module), '__version__', None)
        if version is None and (distribution := _distribution(package)) is not None:
            version = distribution.version
        if version is not None:
            by_package[package] = str(version)
    return by_package


def other_copies() -> dict[str, str]:
    """Return distribution -> folder of its module, if one is imported that is not of the installed one.

    The checkout of an editable install is the installed one, also of one by a link (`.egg-link`). A module
    that is imported without any installed distribution is listed.
    """
    folders = {}
    for package, module in PACKAGES.items():
        file = getattr(sys.modules.get(module), '__file__', None)
        if file is None:
            continue
        folder, distribution = Path(file).resolve().parent, _distribution(package)
        if distribution is None or folder not in _possible_folders(distribution, module):
            folders[package] = str(folder)
    return folders


def versions_with_places() -> dict[str, str]:
    """Return `versions`; behind the version of a module of `other_copies` stands its folder in brackets."""
    folders = other_copies()
    return {
        package: f'{version} ({folders[package]})' if package in folders else version
        for package, version in versions().items()
    }


def _distribution(package: str) -> Distribution | None:
    """Return the distribution of a package, which may have the name of its module: mmcv with operators."""
    from importlib import metadata

    for name in (package, PACKAGES[package]):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.distribution(name)
    return None


def _possible_folders(distribution: Distribution, module: str) -> list[Path]:
    """Return the folders that may hold a module of a distribution; an editable one is in its checkout."""
    folders = [Path(str(distribution.locate_file(module)))]
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    if origin.get('dir_info', {}).get('editable'):
        checkout = Path(urllib.parse.unquote(urllib.parse.urlparse(origin['url']).path))
        folders += [checkout / module, checkout / 'src' / module]
    return [folder.resolve() for folder in folders]


def nearest_base(kind: type, names: Container[str]) -> str | None:
    """Return the name of a class or of its nearest base that is one of `names`; None if there is none."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in names), None)
