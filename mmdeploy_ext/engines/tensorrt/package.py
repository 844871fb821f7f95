"""The TensorRT that is here: `tensorrt` (10.x, 11.x) or `tensorrt-rtx`, one small interface over both.

Neither is imported before it is asked for. Both are used with explicit precision alone: the dtypes are those
that the ONNX file states, and no builder flag changes them (TensorRT 11 has no such flags any more).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = {'tensorrt': 'tensorrt', 'tensorrt-rtx': 'tensorrt_rtx'}
"""Distribution -> module."""
INSTALL = {
    'tensorrt': 'pip install tensorrt (it builds and runs on the GPU at hand)',
    'tensorrt-rtx': 'make env-tensorrt, or pip install tensorrt-rtx (233 MB; it builds without a GPU)',
}
OLDEST = (10, 0)
"""Of `tensorrt`: strongly typed networks and tensors by name as they are used here."""


@dataclasses.dataclass(frozen=True)
class Package:
    """An imported TensorRT, 'tensorrt' or 'tensorrt-rtx'."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        """Version of the package."""
        return self.module.__version__

    @property
    def builds_for_others(self) -> bool:
        """Whether engines can be built for architectures that are not at hand."""
        return hasattr(self.module, 'ComputeCapability')

    @property
    def architectures(self) -> tuple[int, ...]:
        """Architectures (75 for SM 7.5) that engines can be built for without a GPU; () for none."""
        if not self.builds_for_others:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(sorted(int(name[2:]) for name in names if name[2:].isdigit()))

    def logger(self) -> Any:
        """Return a logger that keeps what the library says: its `errors()` and `warnings()`."""

        class Collector(self.module.ILogger):
            def __init__(self) -> None:
                super().__init__()
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, message: str) -> None:
                self.lines.append((severity.name, message))

            def errors(self) -> list[str]:
                return [text for severity, text in self.lines if severity in ('ERROR', 'INTERNAL_ERROR')]

            def warnings(self) -> list[str]:
                return [text for severity, text in self.lines if severity == 'WARNING']

        return Collector()


def is_installed(name: str) -> bool:
    """Return whether a package is there; imports nothing."""
    return importlib.util.find_spec(MODULES[name]) is not None


def find_package(name: str = 'auto', architectures: Sequence[int] = ()) -> Package:
    """Import the package that is asked for.

    Args:
        name: 'tensorrt', 'tensorrt-rtx', or 'auto': tensorrt-rtx where architectures are named, since it
            alone builds for a GPU that is not there; else `tensorrt` where it is, else tensorrt-rtx.
        architectures: to build for; () for the GPU at hand.

    Raises:
        EngineError: it is not installed, too old, or its libraries do not load.
    """
    order = [*MODULES][:: -1 if architectures else 1] if name == 'auto' else [name]
    for candidate in order:
        if is_installed(candidate):
            return _load(candidate)
    ways = '; '.join(f'{candidate}: {INSTALL[candidate]}' for candidate in order)
    raise EngineError(f'TensorRT is not installed; {ways}')


def _load(name: str) -> Package:
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f'{name} is installed and cannot be loaded ({error}); install it again: {INSTALL[name]}'
        ) from error
    found = tuple(int(part) for part in module.__version__.split('.')[:2])
    if name == 'tensorrt' and found < OLDEST:
        raise EngineError(
            f'tensorrt {module.__version__} is too old, expected 10.0 or newer; pip install -U tensorrt'
        )
    return Package(name, module)


def check_architectures(package: Package, asked: Sequence[int], here: int | None) -> None:
    """Refuse architectures that a package cannot build for, and none where there is no GPU.

    `asked` are architectures, e.g. (86, 89), () for the GPU at hand; `here` is that of the GPU at hand.
    """
    known = ' '.join(map(str, package.architectures))
    if not asked:
        if here is None:
            what = f'choose what to build for: --sm {known}' if known else INSTALL['tensorrt-rtx']
            raise EngineError(f'there is no GPU that {package.name} could build for; {what}')
        if not package.builds_for_others:
            return
        asked = [here]
    if not package.builds_for_others:
        if here is None or set(asked) != {here}:
            found = 'there is none' if here is None else f'that is SM {here}'
            raise EngineError(
                f'--sm {" ".join(map(str, asked))}: {package.name} builds for the GPU at hand, and {found}; '
                f'with tensorrt-rtx engines for other architectures can be built'
            )
        return
    unknown = [number for number in asked if number not in package.architectures]
    if unknown:
        raise EngineError(
            f'--sm {" ".join(map(str, unknown))}: {package.name} {package.version} builds for {known}; for '
            f'others use tensorrt on such a GPU'
        )
