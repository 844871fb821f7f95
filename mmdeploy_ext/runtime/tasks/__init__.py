"""Detection tasks in proofs: matching and drawing of results."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.spec.results import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from mmdeploy_ext.spec.results import Bars, DetectionRow


NAMES = 'bbox2d', 'bbox3d', 'boxed_mask', 'driving', 'mask', 'occupancy', 'panoptic'
TASKS = {name: f'{__name__}.{name}' for name in NAMES}
NEEDED = ('match_detections', 'fit_pair', 'draw_pair', 'RESULTS', 'PLACE')
"""Required names of a task module."""
NEEDED_BY_HALF = ('half_bars', 'half_text')
"""Further names for proofs of float16 and INT8 files."""


def task_module(name: str, needed: Sequence[str] = NEEDED) -> ModuleType:
    """Return a task's module: a key of `TASKS`, or a dotted name."""
    try:
        module = importlib.import_module(TASKS.get(name, name))
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        is_absolute = bool(name) and not name.startswith('.')  # else ValueError or TypeError
        if is_absolute and not f'{name}.'.startswith(f'{getattr(error, "name", None)}.'):
            raise
        raise ConfigError(
            f'task {name!r}: there is no such module; expected {", ".join(TASKS)}, or the dotted name of a '
            f'module of your own'
        ) from error
    if missing := [attribute for attribute in needed if not hasattr(module, attribute)]:
        raise ConfigError(f'task {name!r}: {module.__file__} has no {", ".join(missing)}')
    return module


def match(
    task: str, title: str, reference: Any, candidate: Any, bars: Bars = FLOAT32, **settings: Any
) -> DetectionRow:
    """Match two lists of results one to one, by a task's rules and a precision's bars."""
    settings = {**match_bars(task, bars), **settings}
    return task_module(task).match_detections(title, reference, candidate, **settings)


def match_bars(task: str, bars: Bars) -> dict[str, float]:
    """Return the bars for a task's `match_detections`; {} for float32, its defaults."""
    return {} if bars.is_float32 else task_module(task, NEEDED_BY_HALF).half_bars(bars)


def place_text(task: str, bars: Bars) -> str:
    """Return how near a pair of results must be."""
    return task_module(task, NEEDED_BY_HALF).half_text(bars)
