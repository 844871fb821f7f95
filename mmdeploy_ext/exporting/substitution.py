"""Post-processing on a file's tensors by the user's test path."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import types
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnx

LIMITS = dict(nms_pre=10**9, max_per_img=10**9, iou_threshold=1.0, nms_thr=1.0, max_num=10**9)
"""Entries of a head's `test_cfg` -> values without effect."""
DOUBLED = ('topk', 'topK', 'corner_topk', 'max_per_image', 'post_max_size')
"""Further limits, which are doubled."""
THRESHOLDS, BELOW = ('score_thr', 'score_threshold'), 1e-4
"""Thresholds, which are lowered by this much: scores beside them count as well."""
WITH_MASKS = 1000
"""Smallest `max_per_img` where a result gets a mask per class: all results would take terabytes."""
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
    """Inside the block heads cut off and suppress nothing that `test_cfg` or their coder controls."""
    with contextlib.ExitStack() as stack, _AtMostAll():
        for config in configs_in(model):
            doubled = {key: 2 * config[key] for key in DOUBLED if type(config.get(key)) is int}
            lower = {key: max(config[key] - BELOW, 0.0) for key in THRESHOLDS if config.get(key)}
            limits = {**doubled, **lower, **LIMITS}
            if 'mask_thr_binary' in config:
                limits['max_per_img'] = max(WITH_MASKS, config.get('max_per_img', 0))
            for key, value in limits.items():
                if key in config:
                    stack.enter_context(replaced_entry(config, key, value))
        coders = [part.bbox_coder for part in model.modules() if hasattr(part, 'bbox_coder')]
        for settings in map(vars, {id(coder): coder for coder in coders}.values()):
            if type(settings.get('max_num')) is int:
                stack.enter_context(replaced_entry(settings, 'max_num', 2 * settings['max_num']))
            if type(settings.get('score_threshold')) is float:
                lower = max(settings['score_threshold'] - BELOW, 0.0)
                stack.enter_context(replaced_entry(settings, 'score_threshold', lower))
        yield


class _AtMostAll(TorchFunctionMode):
    """`topk` of more values than there are gives them all."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.topk, torch.Tensor.topk):
            given = dict(zip(('input', 'k', 'dim', 'largest', 'sorted'), args, strict=False), **kwargs or {})
            size = given['input'].shape[given.get('dim', -1)]
            return torch.topk(**given | dict(k=min(given['k'], size)))
        return function(*args, **(kwargs or {}))


def configs_in(model: torch.nn.Module) -> list[dict[str, Any]]:
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
