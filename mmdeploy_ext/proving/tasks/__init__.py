"""The part of a proof that depends on the task of a detector: matching and drawing its results.

A task module, one of these or one of the package that registers a family, has

- `match_detections(image, reference, candidate, *, capacity, ...)`, which returns a `DetectionRow` of
  PyTorch's and an engine's results of an image: see `matching.match_lists`,
- `pair_up(reference, candidate, ...) -> Pairing`, the pairs of two lists of results,
- `fit_pair(pair) -> Pair`, which brings a `Pair` to a size for drawing, and
  `draw_pair(pair, classes, score_thr) -> (h, w, 3) BGR`,
- `RESULTS` and `PLACE`, titles of columns in tables: of the number of results, such as 'boxes', and of
  `DetectionRow.worst_distance` or `worst_iou`, such as 'worst IoU',
- `half_bars(bars)`, the bars of `pair_up` for float16 and INT8 files, made of `half_bars.HalfBars`, and
  `half_text(bars)`, the same in words.

It may have

- `MATCHES_MANY`, whether thousands of results are matched in a moment; limits are raised further then,
- `SAME_LOGITS_SCORE_BAR`, the `score_bar` of `match_detections` if both sides have the same logits.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType


TASKS = {name: f'{__name__}.{name}' for name in ('bbox2d', 'bbox3d', 'boxed_mask', 'mask', 'panoptic')}
"""Name of a task of this package -> its module."""
NEEDED = ('match_detections', 'pair_up', 'fit_pair', 'draw_pair', 'RESULTS', 'PLACE')
"""Names that a task module must have; `half_bars` and `half_text` are only needed below float32."""


def task_module(name: str) -> ModuleType:
    """Return the module of a task.

    `name` is a key of `TASKS`, or the dotted name of another module, as `Family.task` states it.

    Raises:
        ConfigError: there is no such module, or it lacks a function.
    """
    try:
        module = importlib.import_module(TASKS.get(name, name))
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):
            raise
        raise ConfigError(
            f'task {name!r}: there is no such module; expected {", ".join(TASKS)}, or the dotted name of a '
            f'module of your own'
        ) from error
    if missing := [attribute for attribute in NEEDED if not hasattr(module, attribute)]:
        raise ConfigError(f'task {name!r}: {module.__file__} has no {", ".join(missing)}')
    return module
