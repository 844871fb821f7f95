"""The part of a proof that depends on the task of a detector: matching and drawing its results.

A task module, one of these or one of the package that registers a family, has `match_detections(image,
reference, candidate, *, score_bar=..., ...) -> DetectionRow`, see `matching.match_lists`; `pair_up(reference,
candidate, ...) -> matching.Pairing` by the same bars; `fit_pair(pair)`, which brings a `results.Pair` to a
size for drawing; `draw_pair(pair, classes, score_thr=0.3) -> (h, w, 3) uint8 BGR`; `RESULTS`, what results
are called in tables, and `PLACE`, the title of the column with `worst_distance` or `worst_iou`.

For float16 or INT8 it needs `half_bars(bars) -> dict`, the bars of `pair_up` by keyword, and `half_text(bars)
-> str`. It may have `ONE_TO_ONE`, arguments of `match_detections` for results of one file's tensors, and
`SAME_LOGITS_SCORE_BAR`, its `score_bar` if both sides decode the same logits.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


TASKS = {name: f'{__name__}.{name}' for name in ('bbox2d', 'bbox3d', 'boxed_mask', 'mask', 'panoptic')}
"""Name of a task of this package -> its module."""
NEEDED = ('match_detections', 'pair_up', 'fit_pair', 'draw_pair', 'RESULTS', 'PLACE')
"""Names that every task module has."""
NEEDED_BY_HALF = ('half_bars', 'half_text')
"""Names that a task module needs, too, if files in float16 or INT8 are proven."""


def task_module(name: str, needed: Sequence[str] = NEEDED) -> ModuleType:
    """Return the module of a task: a key of `TASKS`, or the dotted name of another module.

    ConfigError: there is no such module, or it lacks a name of `needed`.
    """
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
