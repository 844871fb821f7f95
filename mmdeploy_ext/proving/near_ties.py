"""Results that depend on rounding: PyTorch's own with thresholds moved a little, and with other rounding.

A result of an engine that has no partner among PyTorch's is a tie, not an error, if PyTorch has it in one of
these runs.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.core.config import replaced_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Contexts = Iterable[contextlib.AbstractContextManager[None]]

TIE_IOU = 1e-4
"""Difference of IoU, and of scores, by which a threshold is moved.

mmcv suppresses all classes at once, each shifted by its label times the largest coordinate, so that float32
rounds a box of class 79 at 1344 pixels to 0.008 pixels: 5e-4 of the width of a box of 16. Measured: of two
engines within 1e-5 of each other's tensors, one suppressed a box at an IoU of 0.499995, where 0.5 is the
threshold (guided anchoring with ResNeXt-101, class 8 at 448 pixels).
"""
KEYS = ('iou_threshold', 'nms_thr')
"""Keys of thresholds of overlaps in the `test_cfg` of mmdet's and of mmdet3d's heads."""
ROUNDING = 2e-7
"""Relative change of each output of a layer: up to three units in the last place of float32.

Engines add up a convolution in other orders. Measured: with PISA's Faster R-CNN ONNX Runtime found 98 of
PyTorch's 100 boxes in a dark picture (one missing, one pair at an IoU of 0.55), since two proposals score the
same to rounding and the better one suppresses the other; PyTorch with layers changed by this gives the
engine's 100 boxes, within 1e-5 of score, in five of six runs. Over a whole network (root mean square of
a difference, over that of the output) ONNX Runtime and PyTorch are 1.0e-6 to 2.0e-6 apart, each as far from
float64 as the other, PyTorch and its runs with this 0.6e-6 to 1.6e-6 (maps and proposals of a Mask R-CNN R50
with two convolutions in its RPN, kernels and masks of SOLOv2 R101).
"""
SIGMOID_ROUNDING = 1.5e-7
"""Absolute change of each score that a sigmoid gives.

PyTorch's sigmoid is right to 1.5e-7 of the score, that of ONNX Runtime 1.31 to 1.4e-7 whatever the score
(measured for logits from -25 to 0): a score of 1e-7 may be 0 or 2e-7. Limits that are raised in a proof let
proposals with such scores in, whose order decides which of them suppresses the other.
"""
SIGMOIDS = torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit
"""The functions whose results are such scores; `torch.nn.Sigmoid` calls one of them."""
DRAWS = 12
"""Number of random changes; each is made with both signs, so that either of two scores is raised.

Runs are made one by one, as long as the caller needs further results. Measured: with Mask R-CNN with
HRNet-W32, whose layers in float64 give 98 of PyTorch's own 100 instances in a dark picture, ONNX Runtime
found 97; five of those six results were explained by two draws, the last one by the sixth.
"""


def near_ties(
    model: torch.nn.Module,
    run: Callable[[], Any],
    keys: Sequence[str] = KEYS,
    choices: Contexts = (),
    run_moved: Callable[[], Any] | None = None,
) -> Iterator[Any]:
    """Yield the results of runs with moved thresholds, in the contexts `choices`, and with other rounding.

    Args:
        model: the detector.
        run: runs the model and returns its results, of any type: they are yielded as they are, such as a list
            with an entry per image, or name -> list of rows.
        keys: names of the thresholds of overlaps or scores to move, in the `test_cfg` of the model's heads.
        choices: contexts in which the model decides ties of its own kind otherwise; it runs in each of them.
        run_moved: does what `run` does where thresholds alone are moved, and may reuse what does not depend
            on them; None: `run`.
    """
    yield from with_moved_thresholds(model, run_moved or run, keys)
    yield from _in_each(choices, run)
    yield from with_other_rounding(model, run)


def with_moved_thresholds(
    model: torch.nn.Module, run: Callable[[], Any], keys: Sequence[str] = KEYS
) -> Iterator[Any]:
    """Yield the results of runs with each threshold (of `keys`) of a detector's heads lower, and higher.

    One threshold is moved at a time, by `TIE_IOU`. Thresholds are floats of a head's `test_cfg` and of the
    dicts in it; whole numbers, and dicts in lists, are left alone.
    """
    configs = [getattr(head, 'test_cfg', None) for head in model.modules() if head is not model]
    thresholds = [threshold for config in configs for threshold in _thresholds(config, keys)]
    unique = {(id(config), key): (config, key) for config, key in thresholds}  # heads may share a config
    moves = itertools.product(unique.values(), (-TIE_IOU, TIE_IOU))
    yield from _in_each(
        (replaced_entry(config, key, config[key] + move) for (config, key), move in moves), run
    )


def _thresholds(config: Any, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each dict of a nested config that holds a threshold, and its key."""
    if isinstance(config, dict):
        yield from ((config, key) for key in keys if isinstance(config.get(key), float))
        for value in config.values():
            yield from _thresholds(value, keys)


def with_other_rounding(model: torch.nn.Module, run: Callable[[], Any]) -> Iterator[Any]:
    """Yield the results of runs with other rounding of layers, twice `DRAWS` times."""
    changes = itertools.product(range(DRAWS), (ROUNDING, -ROUNDING))
    yield from _in_each((other_rounding(model, *change) for change in changes), run)


def _in_each(contexts: Contexts, run: Callable[[], Any]) -> Iterator[Any]:
    """Yield the result of a run in each context, after which the model is as before."""
    for context in contexts:
        with context:
            result = run()
        yield result


class _RoundedSigmoids(TorchFunctionMode):
    """Inside the context the scores of every sigmoid are changed by up to `SIGMOID_ROUNDING`, not below 0.

    `size` is that of `other_rounding`: its sign is that of the changes.
    """

    def __init__(self, seed: int, size: float) -> None:
        super().__init__()
        self.generator, self.change = torch.Generator().manual_seed(seed), SIGMOID_ROUNDING
        if size < 0:
            self.change = -SIGMOID_ROUNDING

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function not in SIGMOIDS:
            return result
        noise = torch.rand(result.shape, generator=self.generator).mul_(2).sub_(1).mul_(self.change)
        return result.add(noise.to(result)).clamp_(min=0)


@contextlib.contextmanager
def other_rounding(model: torch.nn.Module, seed: int, size: float) -> Iterator[None]:
    """Inside the block layers and sigmoids round otherwise: `other_layer_rounding`, `SIGMOID_ROUNDING`.

    `seed` is that of the random changes, `size` the largest relative one of layers; a negative `size`
    reverses the signs of all of them.
    """
    with other_layer_rounding(model, seed, size), _RoundedSigmoids(seed, size):
        yield


@contextlib.contextmanager
def other_layer_rounding(model: torch.nn.Module, seed: int, size: float) -> Iterator[None]:
    """Inside the block outputs of `nn.Conv2d` and `nn.Linear` are changed by up to `size` of themselves.

    `seed` is that of the random changes; a negative `size` reverses their signs.
    """
    generator = torch.Generator().manual_seed(seed)

    def change(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        noise = torch.rand(output.shape, generator=generator).mul_(2 * size).sub_(size)
        return output + output * noise.to(output)

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                hooks.enter_context(layer.register_forward_hook(change))
        yield
