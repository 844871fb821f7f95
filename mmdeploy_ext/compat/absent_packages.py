"""Stand-ins for packages that research repositories import at their top, and few of their models call.

Modules of users get the stand-in of an absent package, except inside `try`. Its names raise when called.
"""

import ast
import functools
import importlib.abc
import importlib.machinery
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from mmdeploy_ext.compat.import_hook import after
from mmdeploy_ext.util.errors import AbsentPackageError
from mmdeploy_ext.util.missing_packages import STAND_INS
from mmdeploy_ext.util.source_code import is_in_package

LYFT = 'lyft_dataset_sdk'
ARGUMENTS = {**STAND_INS, LYFT: f'--no-deps {LYFT}'}
"""Package -> arguments of `pip install`; Lyft's package pins libraries of 2019."""
OURS = Path(__file__).resolve().parents[1]


class AbsentName:
    """A name of an absent module: it can be imported and derived from.

    A call raises AbsentPackageError with the user's line and the pip command.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse(sys._getframe(1))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        def refuse(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
            self._refuse(sys._getframe(1))

        return (type(self._name, (), {'__new__': refuse, '__module__': self._module}),)

    def _refuse(self, caller: FrameType) -> NoReturn:
        package = self._module.partition('.')[0]
        raise AbsentPackageError(
            f'{caller.f_code.co_filename}:{caller.f_lineno} calls {self._module}.{self._name}, and {package} '
            f'is not installed: {sys.executable} -m pip install {ARGUMENTS[package]}',
            name=self._module,
        )


class AbsentModule(ModuleType):
    """An absent module; its names are `AbsentName`s, except dunder names and imported submodules."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> AbsentName:
        if name.startswith('__'):
            raise AttributeError(name)
        return AbsentName(self.__name__, name)


class _AbsentLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


class _AbsentFinder(importlib.abc.MetaPathFinder):
    """Finds absent packages for modules of users, after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = fullname.partition('.')[0]
        if package not in STAND_INS:
            return None
        if package != fullname:
            if not isinstance(sys.modules.get(package), AbsentModule):
                return None
        elif not _is_needed_by_user():
            return None
        return importlib.machinery.ModuleSpec(fullname, _AbsentLoader(), is_package=True)


def _is_needed_by_user() -> bool:
    """False for `importlib.util.find_spec`, which gets the true answer."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_globals.get('__name__') == 'importlib.util':
            return False
        if not name.startswith('<frozen') and not Path(name).is_relative_to(Path(__file__).parent):
            break
        frame = frame.f_back
    else:
        return False
    file = Path(name).resolve()
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ('stdlib', 'purelib', 'platlib')]
    if not file.is_file() or is_in_package(file):
        return False
    if any(file.is_relative_to(folder) for folder in (*installed, OURS)):
        return False
    return frame.f_lineno not in _lines_in_try(file)


@functools.lru_cache
def _lines_in_try(file: Path) -> frozenset[int]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            lines.update(range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1))
    return frozenset(lines)


def offer() -> None:
    """Offer stand-ins for absent `STAND_INS` to modules of users."""
    if not any(isinstance(finder, _AbsentFinder) for finder in sys.meta_path):
        sys.meta_path.append(_AbsentFinder())


@after(*STAND_INS, versions='exiawsh 95f6470 of 2024-06')
def packages_that_this_model_does_not_call(module: ModuleType) -> bool:
    """Repositories import packages such as detectron2, einops or fvcore at their top, for few functions.

    Where one is absent, its stand-in of this module has been imported: this patch only reports that.
    """
    return isinstance(module, AbsentModule)
