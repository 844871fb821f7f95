"""Packages that a user's modules import and that are not installed, with the arguments of `pip install`."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdeploy_ext.core.source_code import is_users_file

STAND_INS = {
    'IPython': 'ipython',
    'aitodpycocotools': 'git+https://github.com/jwwangchn/cocoapi-aitod#subdirectory=aitodpycocotools',
    'detectron2': 'git+https://github.com/facebookresearch/detectron2',
    'einops': 'einops',
    'flash_attn': 'flash-attn',
    'fvcore': 'fvcore',
    'ipdb': 'ipdb',
    'transformers': 'transformers',
    'xformers': 'xformers',
}
"""Package that may be absent until it is called (`compat/absent_packages.py`) -> argument of pip install."""
DISTRIBUTIONS = {
    'PIL': 'pillow',
    'Polygon': 'Polygon3',
    'cv2': 'opencv-python-headless',
    'google': 'protobuf',
    'nuscenes': 'nuscenes-devkit',
    'osgeo': 'gdal',
    'panopticapi': 'git+https://github.com/cocodataset/panopticapi.git',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'torch_scatter': 'torch-scatter',
    'upath': 'universal_pathlib',
    'yaml': 'pyyaml',
}
"""Import name -> argument of `pip install` where the two differ."""


def install_command(error: ModuleNotFoundError, modules: Sequence[str] = ()) -> str:
    """Command that installs all packages that the user's modules lack, see `pip_arguments`."""
    return shlex.join([sys.executable, '-m', 'pip', 'install', *pip_arguments(error, modules)])


def pip_arguments(error: ModuleNotFoundError, modules: Sequence[str] = ()) -> list[str]:
    """Arguments of `pip install` for all absent packages that the user's modules import.

    Reads, without running them, the user's files in the traceback, the files of `modules`, and their imports.
    Imports inside functions and in `try` do not count. The package of the error comes first. A package that
    the repository builds is the folder of its setup.py.
    """
    sources = {(error.name or '').partition('.')[0]: ''}
    waiting = [
        Path(frame.f_code.co_filename).resolve() for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    waiting += [file for module in modules for file in _files(Path.cwd(), module, 0, [])]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file() or not is_users_file(file):
            continue
        seen.add(file)
        for module, level, members in _imports(file):
            package = module.partition('.')[0]
            files = _files(file, module, level, members)
            waiting += files
            if not level and not files and (package in sources or _is_absent(package)):
                sources[package] = sources.get(package) or _source(file, package)
    return [source or DISTRIBUTIONS.get(name, name) for name, source in sources.items()]


def _source(file: Path, package: str) -> str:
    """Return the folder above a file with a setup.py that names the package, or ''."""
    for folder in file.parents[:3]:
        setup = folder / 'setup.py'
        if setup.is_file() and re.search(rf'[\'"]{package}[\'"]', setup.read_text(encoding='utf-8')):
            return str(folder)
    return ''


def _is_absent(package: str) -> bool:
    if package in sys.modules or package in sys.stdlib_module_names or package in STAND_INS:
        return False
    return importlib.util.find_spec(package) is None


def _imports(file: Path) -> Iterator[tuple[str, int, list[str]]]:
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, 0, []) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            members = [alias.name for alias in statement.names]
            yield statement.module or '', statement.level, members


def _files(file: Path, module: str, level: int, members: list[str]) -> list[Path]:
    """The user's files of an import in `file`: packages on the way, the module, and submodules."""
    parts = module.split('.') if module else []
    folders = [file.parents[level - 1]] if level else [Path(entry or '.').resolve() for entry in sys.path]
    for folder in folders:
        place = folder.joinpath(*parts)
        if not (place.is_dir() or place.with_suffix('.py').is_file()):
            continue
        ways = [folder.joinpath(*parts[: count + 1], '__init__.py') for count in range(len(parts))]
        ways += [place / '__init__.py', place.with_suffix('.py'), *(place / f'{name}.py' for name in members)]
        ways += [place / name / '__init__.py' for name in members]
        return [way for way in ways if way.is_file()]
    return []
