"""Results that turn on the rounding at a threshold: what PyTorch gives with the threshold moved by that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import replaced_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

TIE_IOU = 1e-4
"""IoU that a threshold is moved by.

mmcv suppresses all classes at once, each shifted by its label times the largest coordinate, so that float32
rounds a box of class 79 at 1344 pixels to 0.008 pixels: 5e-4 of the width of a box of 16. Measured: of two
engines within 1e-5 of each other's tensors, one suppressed a box at an IoU of 0.499995, where 0.5 is the
threshold (guided anchoring with ResNeXt-101, class 8 at 448 pixels).
"""
KEYS = ('iou_threshold',)


def with_moved_thresholds(
    model: torch.nn.Module, run: Callable[[], list[Any]], keys: Sequence[str] = KEYS
) -> list[list[Any]]:
    """Return what a run gives with each threshold of a detector lower, and higher.

    Args:
        model: the detector; its heads' `test_cfg` is as before afterwards.
        run: returns the results of some images.
        keys: of thresholds.

    Returns:
        Results of each run; none where there is no such threshold.
    """
    found = []
    for config, key in _thresholds_of(model, keys):
        for move in (-TIE_IOU, TIE_IOU):
            with replaced_entry(config, key, config[key] + move):
                found.append(run())
    return found


def _thresholds_of(model: torch.nn.Module, keys: Sequence[str]) -> list[tuple[dict[str, Any], str]]:
    """Return where thresholds are in the `test_cfg` of a detector's heads, each once."""
    configs = [getattr(head, 'test_cfg', None) for head in model.modules() if head is not model]
    every = [place for config in configs for place in _thresholds(config, keys)]
    return list({(id(config), key): (config, key) for config, key in every}.values())


def _thresholds(config: Any, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(config, dict):
        yield from ((config, key) for key in keys if isinstance(config.get(key), float))
        for value in config.values():
            yield from _thresholds(value, keys)
