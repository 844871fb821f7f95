"""Results that turn on the rounding of a suppression: what PyTorch gives with its threshold moved by that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import replaced_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

TIE_IOU = 1e-4
"""IoU that a threshold is moved by.

mmcv suppresses all classes at once, each shifted by its label times the largest coordinate, so that float32
rounds a box of class 79 at 1344 pixels to 0.008 pixels: 5e-4 of the width of a box of 16. Measured: of two
engines within 1e-5 of each other's tensors, one suppressed a box at an IoU of 0.499995, where 0.5 is the
threshold (guided anchoring with ResNeXt-101, class 8 at 448 pixels).
"""
KEY = 'iou_threshold'


def with_moved_thresholds(model: torch.nn.Module, run: Callable[[], list[Any]]) -> list[list[Any]]:
    """Return what a run gives with the threshold of each suppression of a detector lower, and higher.

    Args:
        model: the detector; its heads' `test_cfg` is as before afterwards.
        run: returns the results of some images.

    Returns:
        Results of each run; none where nothing is suppressed by IoU.
    """
    found = []
    for config in _suppressions(model):
        for move in (-TIE_IOU, TIE_IOU):
            with replaced_entry(config, KEY, config[KEY] + move):
                found.append(run())
    return found


def _suppressions(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the configs of suppressions in the `test_cfg` of a detector's heads, each once."""
    configs = [getattr(head, 'test_cfg', None) for head in model.modules() if head is not model]
    return list({id(one): one for config in configs for one in _thresholds(config)}.values())


def _thresholds(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        if isinstance(config.get(KEY), float):
            yield config
        for value in config.values():
            yield from _thresholds(value)
