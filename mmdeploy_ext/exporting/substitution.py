"""Post-processing on a file's tensors by the user's test path."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx

TIE = 1e-6
"""Largest difference of two scores that may change places."""
LIMITS = dict(nms_pre=10**9, max_per_img=10**9, iou_threshold=1.0, nms_thr=1.0, max_num=10**9)
"""Entries of a head's `test_cfg` -> values without effect."""
DOUBLED = ('topk', 'topK', 'corner_topk', 'max_per_image', 'post_max_size')
"""Further limits, which are doubled."""


FUNCTIONS = types.FunctionType, functools.partial
"""Types of functions that may replace methods, see `substituted`."""


class PerCall(list):
    """Outputs of one method, one per call, such as the stages of a cascade."""


@contextlib.contextmanager
def substituted(model: torch.nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block methods of a live model return the given outputs.

    `outputs`: path of a method ('bbox_head.forward') -> a copy of this value at each call, the next of a
    `PerCall`, or the result of a function of the call's arguments. A method with a function or None need not
    be called.
    """
    calls = dict.fromkeys(outputs, 0)

    def method(path: str, given: Any) -> Any:
        def substitute(*args: Any, **kwargs: Any) -> Any:
            index, calls[path] = calls[path], calls[path] + 1
            if isinstance(given, PerCall) and index >= len(given):
                raise ConfigError(f'{path}() was called {index + 1} times, expected {len(given)}')
            entry = given[index] if isinstance(given, PerCall) else given
            return entry(*args, **kwargs) if isinstance(entry, FUNCTIONS) else copy.deepcopy(entry)

        return substitute

    with contextlib.ExitStack() as stack:
        for path, given in outputs.items():
            part, name = _owner(model, path)
            stack.enter_context(replaced_entry(vars(part), name, method(path, given)))
        yield
    optional = (*FUNCTIONS, type(None))
    unused = [path for path, given in outputs.items() if not (isinstance(given, optional) or calls[path])]
    if unused:
        raise ConfigError(f'the test path did not call {", ".join(unused)}()')


@contextlib.contextmanager
def observed(model: torch.nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield path of a method -> copies of its results, one per call."""
    results: dict[str, list[Any]] = {path: [] for path in paths}
    with contextlib.ExitStack() as stack:
        for path, kept in results.items():
            part, name = _owner(model, path)
            watched = functools.partial(_keep, getattr(part, name), kept)
            stack.enter_context(replaced_entry(vars(part), name, watched))
        yield results


def _keep(method: Callable[..., Any], results: list[Any], *args: Any, **kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    results.append(copy.deepcopy(result))
    return result


def _owner(model: torch.nn.Module, path: str) -> tuple[Any, str]:
    owner, _, name = path.rpartition('.')
    return operator.attrgetter(owner)(model) if owner else model, name


@contextlib.contextmanager
def without_limits(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block heads cut off and suppress nothing that their `test_cfg` controls."""
    with contextlib.ExitStack() as stack:
        for config in _configs(model):
            doubled = {key: 2 * config[key] for key in DOUBLED if type(config.get(key)) is int}
            for key, value in {**doubled, **LIMITS}.items():
                if key in config:
                    stack.enter_context(replaced_entry(config, key, value))
        yield


def _configs(model: torch.nn.Module) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    waiting = [getattr(part, 'test_cfg', None) for part in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, dict) and id(config) not in found:
            found[id(config)] = config
            waiting += config.values()
    return list(found.values())


def border_names(model: onnx.ModelProto) -> list[str]:
    """Return the tensors between the stages of a file; tensors inside a stage have a '/'."""
    outputs = {value.name for value in model.graph.output}
    names = (name for node in model.graph.node for name in node.output)
    return [name for name in names if name and '/' not in name and name not in outputs]


def choices_among(reference: Any, candidate: Any, run: Callable[[], Any]) -> Callable[..., Any]:
    """Return the argument `tied` of `matching.match_lists` for results of one file's tensors.

    `run` returns PyTorch's results of the same image without limits.
    """

    def tied(
        missing: list[int], extra: list[int], outside: Mapping[int, int]
    ) -> list[tuple[int | None, int | None]]:
        near = [
            (row, column)
            for row in (*missing, *outside)
            for column in (*extra, *outside.values())
            if abs(float(reference.scores[row]) - float(candidate.scores[column])) <= TIE
        ]
        is_cut = len(reference.scores) == len(candidate.scores)
        last = [float(side.scores.min(initial=np.inf)) + TIE for side in (reference, candidate)]
        at_cut = [
            pair
            for pair in near
            if is_cut
            and outside.get(pair[0]) != pair[1]
            and reference.scores[pair[0]] <= last[0]
            and candidate.scores[pair[1]] <= last[1]
        ]
        every = run() if len(at_cut) < len(near) else None
        pairs: dict[int, int] = {}
        for row, column in near:
            if row in pairs or column in pairs.values():
                continue
            if (row, column) in at_cut or _has(every, candidate, column):
                pairs[row] = column
        choices: list[tuple[int | None, int | None]] = list(pairs.items())
        for row, column in pairs.items():  # each may suppress another one, or no longer
            others = {*missing, *outside} - pairs.keys(), {*extra, *outside.values()} - {*pairs.values()}
            for side, alone in zip((reference, candidate), others, strict=True):
                index = next((index for index in sorted(alone) if follows(side, index, row, column)), None)
                if index is not None:
                    choices.append((index, None) if side is reference else (None, index))
        choices = list(dict.fromkeys(choices))
        return choices + _behind_cut((reference, candidate), (missing, extra), choices)

    def follows(side: Any, index: int, row: int, column: int) -> bool:
        if side.labels[index] != reference.labels[row]:
            return False
        lower = side.scores[index] < min(reference.scores[row], candidate.scores[column])
        return bool(lower) and _overlap(side, index, (reference, row), (candidate, column))

    return tied


def _behind_cut(
    sides: Sequence[Any], alone: Sequence[list[int]], choices: Sequence[tuple[int | None, int | None]]
) -> list[tuple[int | None, int | None]]:
    if len(sides[0].scores) != len(sides[1].scores):  # not full
        return []
    chosen = [[pair[side] for pair in choices] for side in (0, 1)]
    found: list[tuple[int | None, int | None]] = []
    for side, other in ((0, 1), (1, 0)):
        lowest = float(sides[other].scores.min(initial=np.inf)) + TIE
        rest = (index for index in alone[side] if index not in chosen[side])
        lower = [index for index in rest if sides[side].scores[index] <= lowest]
        for index in lower[: chosen[side].count(None)]:
            found.append((index, None) if side == 0 else (None, index))
    return found


def _overlap(side: Any, index: int, *chosen: tuple[Any, int]) -> bool:
    if getattr(side, 'bboxes_xyxy', None) is None:
        return False
    box = side.bboxes_xyxy[index]
    others = [results.bboxes_xyxy[other] for results, other in chosen]
    return any((np.minimum(box[2:], other[2:]) > np.maximum(box[:2], other[:2])).all() for other in others)


def _has(every: Any, results: Any, index: int) -> bool:
    same = (every.labels == results.labels[index]) & (np.abs(every.scores - results.scores[index]) <= TIE)
    for name, room in (('bboxes_xyxy', 1e-2), ('boxes', 1e-3)):
        boxes = getattr(results, name, None)
        if boxes is not None:
            same &= (np.abs(getattr(every, name) - boxes[index]) <= room).all(1)
    return bool(same.any())
