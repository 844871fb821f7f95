"""What depends on the task of a detector: how its results are matched and drawn; one module per task.

A task module has `match_detections(image, reference, candidate, *, capacity) -> DetectionRow`,
`fit_pair(pair) -> Pair` and `draw_pair(pair, classes) -> (h, w, 3) BGR`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def task_module(name: str) -> ModuleType:
    """Return the module of a task, `Family.task`; a ValueError names one that is none."""
    if not name.isidentifier() or importlib.util.find_spec(f'{__name__}.{name}') is None:
        raise ValueError(f'{name!r} is not a task of mmdeploy_ext.proving.tasks')
    return importlib.import_module(f'{__name__}.{name}')
