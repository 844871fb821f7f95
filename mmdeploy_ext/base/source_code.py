"""Where classes and functions are defined, who owns them, and versions of packages."""

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
import sysconfig
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmdeploy_ext
from mmdeploy_ext.base.typed_json import LEFT_OUT, JsonDataclass

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from importlib.metadata import Distribution


DISTRIBUTIONS = {
    'mmcv': ('mmcv-full', 'mmcv'),
    'mmdet': ('mmdet',),
    'mmdet3d': ('mmdet3d',),
    'mmseg': ('mmsegmentation',),
}
"""Package -> distributions that install it."""
LIBRARIES = ('torch', 'torchvision', 'numpy', 'addict', 'spconv', 'cumm', 'builtins')
"""Packages that are libraries wherever they are."""
PACKAGE_FOLDERS = ('site-packages', 'dist-packages')
OURS = Path(__file__).resolve().parents[1]
PROJECTS: list[Path] = []
"""Folders of packages of this repository that are installed by themselves; these add theirs."""
PYTHON = Path(os.__file__).parent
TYPED = ('<string>', '<stdin>', '<console>', '<python-input-', '<ipython-input-')
"""File names of typed code: `exec`, `python -c`, a pipe, consoles."""


def package_of(path: Path) -> str:
    """Package of an installed file, or ''."""
    folders = iter(path.parts)
    return next(folders, '') if any(folder in PACKAGE_FOLDERS for folder in folders) else ''


def is_in_package(path: Path) -> bool:
    return bool(package_of(path))


def is_typed(file: str) -> bool:
    return file.startswith(TYPED)


def is_users_file(path: Path) -> bool:
    """Whether a path is outside of packages, Python's modules and ours; links are not followed."""
    return not is_in_package(path) and not is_ours(path) and not path.is_relative_to(PYTHON)


@functools.lru_cache(maxsize=1024)
def copied_file(file: str) -> tuple[Path, Path] | None:
    """Folder of a copied OpenMMLab package around a file, and the file of the library that was copied."""
    for folder in Path(file).parents:
        if folder.name in DISTRIBUTIONS and (folder / '__init__.py').is_file():
            installed = Path(sysconfig.get_path('purelib'), Path(file).relative_to(folder.parent))
            return (folder, installed) if installed.is_file() else None
    return None


@functools.lru_cache(maxsize=4096)
def is_ours(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in (OURS, *PROJECTS)) or path.is_relative_to(
        Path(__file__).parents[1]
    )


def is_users(defined: Any) -> bool:
    """Whether the user owns a class (bases aside) or function; edited files of OpenMMLab count."""
    package, file = defined.__module__.partition('.')[0], file_of(defined)
    if file is None or package in LIBRARIES or is_ours(file) or is_ours(_resolved(os.path.abspath(file))):
        return False
    return not is_installed(package, file) if package in DISTRIBUTIONS else is_users_file(file)


def file_of(defined: Any) -> Path | None:
    """File of a class or function; None for a class of C.

    A class takes the file of one of its methods: its module name may have been imported again since.
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
    """File, relative to its top-level package's folder, and line (0 if unknown)."""
    path, module = file_of(defined), defined.__module__
    if path is None:
        return f'{module.replace(".", "/")}.py', 0
    depth = module.count('.') + (path.stem == '__init__') if module != '__main__' else 0
    file = Path(*path.parts[-(depth + 1) :]).as_posix()
    if isinstance(defined, type):
        return file, _classes_of_file(path).get(defined.__qualname__, 0)
    return file, defined.__code__.co_firstlineno


def place_of_line(file: str) -> str:
    """Return a file of code, relative to the folder that its package is imported from, or its name."""
    path = Path(file)
    roots = [folder for folder in path.parents if not (folder / '__init__.py').is_file()]
    return str(path.relative_to(roots[0])) if roots else path.name


def is_installed(package: str, path: str | Path) -> bool:
    """Whether a Python file is as a distribution of OpenMMLab installed it, not copied, edited or added."""
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
    """Whether the installed OpenMMLab package has a class with this module and name, or is not installed."""
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
    """Imported packages of OpenMMLab that no distribution installed -> their folder."""
    files = ((package, getattr(sys.modules.get(package), '__file__', None)) for package in DISTRIBUTIONS)
    return {package: Path(file).parent for package, file in files if file and not is_installed(package, file)}


def is_copied(kind: type) -> bool:
    """Whether a class is a library's own, in a user's copy of the library."""
    package = kind.__module__.partition('.')[0]
    if package not in copied_libraries():
        return False
    root, _ = _installed_files(package)
    return root is None or not root.is_dir() or is_in_library(kind)


@functools.lru_cache(maxsize=256)
def _classes_of_file(path: Path) -> dict[str, int]:
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
    return Path(file).resolve()


@functools.lru_cache(maxsize=1024)
def _sha256_urlsafe(file: str, _modified_ns: int) -> str:
    digest = hashlib.sha256(Path(file).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b'=').decode()


@dataclasses.dataclass(frozen=True)
class ModelClass(JsonDataclass):
    """A class of a model that no installed library defines.

    Attributes:
        file: path relative to the folder that it was imported from.
        sha256: hash of the file; '' if unreadable.
        ours: this package or one of `PROJECTS` defines it.
        line: 0 if unknown, and in metadata.
    """

    name: str
    file: str
    sha256: str
    ours: bool
    line: int = dataclasses.field(default=0, compare=False, metadata={LEFT_OUT: True})

    @property
    def place(self) -> str:
        return f'{self.file}:{self.line}' if self.line else self.file

    def to_json(self) -> dict[str, Any]:
        """All fields except the line, which moves with unrelated edits."""
        return dict(name=self.name, file=self.file, sha256=self.sha256, ours=self.ours)


def model_classes(model: Any) -> tuple[ModelClass, ...]:
    """Classes of a model, with bases, that no installed library defines."""
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
    """Classes, with bases, of a model's modules and their attributes."""
    return dict.fromkeys(base for _, part in parts_of(model) for base in type(part).__mro__)


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of each module and each attribute (entries of lists) of a module."""
    for path, module in model.named_modules():
        yield path, module
        for name, value in vars(module).items():
            several = value if isinstance(value, list | tuple) else [value]
            yield from ((f'{path}.{name}'.lstrip('.'), entry) for entry in several)


def has_known_modules(model: Any) -> bool:
    """Whether all modules are classes of PyTorch, the OpenMMLab packages that we test with, or ours."""
    supported = {*LIBRARIES, *DISTRIBUTIONS, mmdeploy_ext.__name__, *(folder.name for folder in PROJECTS)}
    packages = {type(module).__module__.partition('.')[0] for module in model.modules()}
    return packages <= supported and not files_of_users_classes(model)


def files_of_users_classes(model: Any) -> set[Path]:
    return {file.resolve() for kind in classes_of(model) if is_users(kind) and (file := file_of(kind))}


def is_users_class(kind: type) -> bool:
    return any(is_users(base) for base in kind.__mro__)


def users_class(kind: type) -> str:
    """Name and place of the user's class, `MyResize (plugin/steps.py:12)`; '' for copied libraries."""
    owner = next((base for base in kind.__mro__ if is_users(base) and not is_copied(base)), None)
    return '' if owner is None else f'{owner.__name__} ({_place(owner)})'


def users_method(kind: type, name: str) -> str:
    """Name and place of a user's method, `Head.get_bboxes (plugin/head.py:120)`, or ''."""
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    if owner is None:
        return ''
    value = vars(owner)[name]
    function = inspect.unwrap(getattr(value, '__func__', value))
    defined = function if inspect.isfunction(function) else owner
    if (not is_users(owner) and not is_users(defined)) or is_copied(owner):
        return ''
    place = _place(defined)
    return f'{owner.__name__}.{name} ({place})'


def _place(defined: Any) -> str:
    file, line = place_of(defined)
    return f'{file}:{line}'


def changed_files(exported: Iterable[Mapping[str, Any]], present: Iterable[ModelClass]) -> list[str]:
    """Files of the user's classes that differ from an export's metadata."""
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
"""Distribution -> module that it installs."""


def versions() -> dict[str, str]:
    """Version of 'mm2onnx' and each imported or installed distribution of `PACKAGES`."""
    by_package = {'mm2onnx': mmdeploy_ext.__version__}
    for package, module in PACKAGES.items():
        version = getattr(sys.modules.get(module), '__version__', None)
        if version is None and (distribution := _distribution(package)) is not None:
            version = distribution.version
        if version is not None:
            by_package[package] = str(version)
    return by_package


def other_copies() -> dict[str, str]:
    """Distribution -> folder of its module, where another copy than the installed one is imported."""
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
    """`versions`, with the folder in brackets behind modules of `other_copies`."""
    folders = other_copies()
    return {
        package: f'{version} ({folders[package]})' if package in folders else version
        for package, version in versions().items()
    }


def _distribution(package: str) -> Distribution | None:
    from importlib import metadata

    for name in (package, PACKAGES[package]):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.distribution(name)
    return None


def _possible_folders(distribution: Distribution, module: str) -> list[Path]:
    folders = [Path(str(distribution.locate_file(module)))]
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    if origin.get('dir_info', {}).get('editable'):
        checkout = Path(urllib.parse.unquote(urllib.parse.urlparse(origin['url']).path))
        folders += [checkout / module, checkout / 'src' / module]
    return [folder.resolve() for folder in folders]


def nearest_base(kind: type, names: Container[str]) -> str | None:
    """Name of a class or its nearest base that is in `names`, or None."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in names), None)
