"""Build requests, and one interface over `tensorrt` (10.x, 11.x) and `tensorrt-rtx`, see `find_package`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from mmdeploy_ext.base.cli import option
from mmdeploy_ext.base.errors import EngineError

MODULES = {'tensorrt': 'tensorrt', 'tensorrt-rtx': 'tensorrt_rtx'}
INSTALL = {
    'tensorrt': 'pip install tensorrt (it builds and runs on the GPU at hand)',
    'tensorrt-rtx': 'make env-tensorrt, or pip install tensorrt-rtx (233 MB; it builds without a GPU)',
}
OLDEST = (10, 0)
"""First `tensorrt` with strongly typed networks and tensors by name."""


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What an engine is built of, and how.

    `only_check` builds nothing: no package is needed, and open axes may stay open. `device` is the index of
    this machine's GPU.
    """

    source: str | os.PathLike[str] = option(
        'source ONNX', 'ONNX file, or an engine (.engine) to check and describe'
    )
    architectures: Sequence[int] = option(
        '--sm N...',
        'GPU architectures that the engine supports, e.g. 86 for SM 8.6 (default: the local GPU)',
        (),
        type=int,
    )
    package: str = option(
        '--package',
        'TensorRT to use; auto: tensorrt-rtx with --sm, else the installed one (default: auto)',
        'auto',
        choices=('auto', 'tensorrt', 'tensorrt-rtx'),
    )
    fp16: bool = option('--fp16', 'mixed precision; inputs and outputs keep their dtypes', False)
    keep_fp32: Sequence[str] | None = option(
        '--keep-fp32 PATTERN...',
        "with --fp16: nodes that stay in float32, by name, operator, module or output ('*', '?'; default: "
        'decoding and post-processing)',
        None,
    )
    shapes: Sequence[str] = option(
        '--shapes NAME=MIN/OPT/MAX...',
        'minimum/optimum/maximum size of dynamic inputs or axes, e.g. '
        'input=1x3x320x320/1x3x608x608/1x3x800x1344',
        (),
    )
    constants: Sequence[str] = option(
        '--constant NAME[=VALUES]...',
        'turn inputs into constants, with their default or VALUES (1,2,...); needed if sizes in the graph '
        'depend on them (masks in form full: img_shape ori_shape)',
        (),
    )
    tf32: bool = option('--tf32', 'allow TF32, which rounds float32 products to 10 bits', False)
    only_check: bool = option('--check', 'only report what TensorRT does not support; build nothing', False)
    device: int = dataclasses.field(default=0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Package:
    name: str
    module: Any

    @property
    def version(self) -> str:
        return self.module.__version__

    @property
    def builds_for_others(self) -> bool:
        """Whether it builds for other GPUs."""
        return hasattr(self.module, 'ComputeCapability')

    @property
    def architectures(self) -> tuple[int, ...]:
        """Architectures (75 for SM 7.5) that need no GPU to build for."""
        if not self.builds_for_others:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(sorted(int(name[2:]) for name in names if name[2:].isdigit()))

    def logger(self) -> Any:
        """An `ILogger` with `errors()` and `warnings()`."""

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
    return importlib.util.find_spec(MODULES[name]) is not None


def installed_package(name: str = 'auto', architectures: Sequence[int] = ()) -> str:
    return next(filter(is_installed, _candidates(name, architectures)), '')


def _candidates(name: str, architectures: Sequence[int]) -> list[str]:
    if name != 'auto':
        return [name]
    return ['tensorrt-rtx', 'tensorrt'] if architectures else ['tensorrt', 'tensorrt-rtx']


def find_package(name: str = 'auto', architectures: Sequence[int] = ()) -> Package:
    """Import an installed TensorRT; 'auto' prefers tensorrt-rtx for `architectures`, else `tensorrt`."""
    names = _candidates(name, architectures)
    name = installed_package(name, architectures)
    if not name:
        ways = '; '.join(f'{candidate}: {INSTALL[candidate]}' for candidate in names)
        raise EngineError(f'TensorRT is not installed; {ways}')
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f'{name} is installed and cannot be loaded ({error}); install it again: {INSTALL[name]}'
        ) from error
    version = tuple(int(part) for part in module.__version__.split('.')[:2])
    if name == 'tensorrt' and version < OLDEST:
        raise EngineError(
            f'tensorrt {module.__version__} is too old, expected 10.0 or newer; pip install -U tensorrt'
        )
    return Package(name, module)


def check_architectures(package: Package, architectures: Sequence[int], local: int | None) -> None:
    """Raise EngineError for architectures that a package cannot build for; `local` is this GPU's, or None."""
    supported = ' '.join(map(str, package.architectures))
    if not architectures and local is None:
        advice = f'choose an architecture: --sm {supported}' if supported else INSTALL['tensorrt-rtx']
        raise EngineError(f'there is no GPU that {package.name} could build for; {advice}')
    requested, architectures = bool(architectures), architectures or [local]
    if package.builds_for_others:
        unknown = [number for number in architectures if number not in package.architectures]
        if unknown:
            subject = '--sm' if requested else 'the GPU of this machine is SM'
            raise EngineError(
                f'{subject} {" ".join(map(str, unknown))}: {package.name} {package.version} builds for '
                f'{supported}, and its engines do not run on others; use tensorrt on such a GPU'
            )
    elif set(architectures) != {local}:
        gpu = 'there is none' if local is None else f'that is SM {local}'
        raise EngineError(
            f'--sm {" ".join(map(str, architectures))}: {package.name} builds for the local GPU, and '
            f'{gpu}; use tensorrt-rtx for other architectures'
        )
