"""The part of a proof that depends on the task of a detector: matching and drawing its results.

A task module, one of these or one of the package that registers a family, has

- `match_detections(image, reference, candidate, *, score_bar=..., ...) -> DetectionRow`, which judges the
  results of one image: `image` is its name, `reference` what PyTorch found, `candidate` what an engine found
  (`Detections`, `Detections3D`, `Instances` or a panoptic map); the keywords are the limits of a pair that
  counts as equal, in this package called bars, the score threshold, and `tied`. `matching.match_lists`
  explains them,
- `pair_up(reference, candidate, ...) -> matching.Pairing`, which pairs two lists of results by the same bars,
- `fit_pair(pair) -> results.Pair`, which brings an image and its two lists of results, a `results.Pair`, to a
  size for drawing (masks, and boxes beside them, stay as they are: drawing resizes masks),
- `draw_pair(pair, classes, score_thr=0.3) -> (h, w, 3) uint8 BGR`, which draws both lists,
- `RESULTS`, what results are called in tables, such as 'boxes', and `PLACE`, the title of the column with
  `DetectionRow.worst_distance` or `worst_iou`, such as 'worst IoU'.

To prove files of float16 or INT8 it needs

- `half_bars(bars) -> dict`, the bars of `pair_up` by keyword, from the `half_bars.HalfBars` of a precision,
- `half_text(bars) -> str`, the same in words, but for the bar of scores, which `HalfBars.text` adds.

It may have

- `ONE_TO_ONE`, arguments of `match_detections` for results that two codes make of one file's tensors,
- `SAME_LOGITS_SCORE_BAR`, the `score_bar` of `match_detections` if both sides decode the same logits.

`mask` is the task of instance masks without boxes, `boxed_mask` that of boxes with masks.
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
    """Return the module of a task.

    Args:
        name: a key of `TASKS`, or the dotted name of another module, as `Family.task` of detectors states it.
        needed: names that it must have.

    Raises:
        ConfigError: there is no such module, or it lacks a name of `needed`.
        ModuleNotFoundError: a module that it imports is missing; other errors of its code are not caught.
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
