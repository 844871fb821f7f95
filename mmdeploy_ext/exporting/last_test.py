"""The test path of a model on its last sample, which can run again on a file's tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.exporting.substitution import observed, substituted

FEATURES = (
    'extract_feat', 'extract_img_feat', 'extract_pts_feat',
    'extract_camera_features', 'extract_lidar_features', 'extract_features', 'camera_view', 'lidar_view',
)  # fmt: skip
"""Methods of a detector that end before its head; the second run has their results of the first."""
OF_MODULES = {*vars(torch.nn.Module()), 'training'}


class LastTest:
    """Runs a model's own `forward` on samples, and the last one again with other outputs of its parts.

    Entries of the results that nobody reads are not compared; `unread` names them.

    What a sample changes in the modules (attributes and buffers) is the same before both of its runs, and
    after the second as after the first.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._features = [name for name in FEATURES if hasattr(model, name)]

    def run(self, **data: Any) -> Any:
        before, self._data = attributes_of(self.model), copy.deepcopy(data)
        with torch.no_grad(), observed(self.model, self._features) as self._found:
            self._results = watched(self.model(**data))
        self._memory = changed_since(before)
        return self._results

    def unread(self) -> set[str]:
        """Return the arrays of the last results that nobody has read since, such as 'pts_bbox.attrs_3d'."""
        return {name for name in unread(self._results) if name}

    def again(self, outputs: Mapping[str, Any]) -> Any:
        """Return the results of the last sample; `outputs`: see `substituted`."""
        after = attributes_of(self.model)
        restore(self._memory)
        given = {path: _one_by_one(results) for path, results in self._found.items() if results}
        try:
            with torch.no_grad(), substituted(self.model, {**given, **outputs}):
                return self.model(**copy.deepcopy(self._data))
        finally:
            for part, (own, _) in after.items():
                for name in vars(part).keys() - OF_MODULES - own.keys():
                    del vars(part)[name]
            restore(after)


class WatchedDict(dict):
    """A dict of results that keeps the names that were read."""

    def __init__(self, *args: Any, **entries: Any) -> None:
        super().__init__(*args, **entries)
        self.read: set[Any] = set()

    def __getitem__(self, name: Any) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: Any, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()

    def __iter__(self) -> Iterator[Any]:  # else dict(results) reads the entries unseen
        return super().__iter__()


def watched(results: Any) -> Any:
    """Return nested lists and dicts of results with every dict watched."""
    if type(results) is dict:
        return WatchedDict({name: watched(entry) for name, entry in results.items()})
    return type(results)(map(watched, results)) if type(results) in (list, tuple) else results


def unread(results: Any, name: str = '') -> Iterator[str]:
    """Yield the names of arrays below dicts that were not read."""
    if isinstance(results, WatchedDict):
        for key, entry in dict.items(results):
            path = f'{name}.{key}' if name else str(key)
            if isinstance(entry, WatchedDict) or _has_dict(entry):
                yield from unread(entry, path)
            elif key not in results.read and is_array(entry):
                yield path
    elif type(results) in (list, tuple):
        for entry in results:
            yield from unread(entry, name)


def _has_dict(entry: Any) -> bool:
    return type(entry) in (list, tuple) and any(isinstance(one, WatchedDict) for one in entry)


def is_array(value: Any) -> bool:
    """Whether a result is an array, boxes, or a list of arrays."""
    if type(value) in (list, tuple):
        return any(map(is_array, value))
    array = getattr(value, 'tensor', value)
    return isinstance(array, torch.Tensor | np.ndarray) and array.ndim > 0


def _one_by_one(results: list[Any]) -> Callable[..., Any]:
    waiting = iter(results)
    return lambda *args, **kwargs: copy.deepcopy(next(waiting))


Attributes = dict[torch.nn.Module, tuple[dict[str, Any], dict[str, Any]]]
"""Module -> its own attributes and buffers, each with a copy of what it holds."""


def attributes_of(model: torch.nn.Module) -> Attributes:
    return {
        part: (
            {name: _copied(value) for name, value in vars(part).items() if name not in OF_MODULES},
            {name: _copied(value) for name, value in part._buffers.items()},
        )
        for part in model.modules()
    }


def changed_since(attributes: Attributes) -> Attributes:
    """Return the entries that changed, as they were."""
    return {
        part: (
            {name: kept for name, kept in own.items() if _differs(vars(part).get(name), *kept)},
            {name: kept for name, kept in buffers.items() if _differs(part._buffers.get(name), *kept)},
        )
        for part, (own, buffers) in attributes.items()
    }


def restore(attributes: Attributes) -> None:
    for part, (own, buffers) in attributes.items():
        vars(part).update({name: _as_it_was(*value) for name, value in own.items()})
        part._buffers.update({name: _as_it_was(*value) for name, value in buffers.items()})


def _copied(value: Any) -> tuple[Any, Any]:
    if isinstance(value, torch.Tensor):
        return value, value.detach().clone()
    return value, copy.copy(value) if type(value) in (dict, list, set) else None


def _differs(now: Any, value: Any, kept: Any) -> bool:
    if now is not value:
        return True
    if isinstance(value, torch.Tensor):
        return not torch.equal(value, kept)
    if isinstance(kept, dict):
        return [*value] != [*kept] or any(value[key] is not kept[key] for key in kept)
    if isinstance(kept, list):
        return [*map(id, value)] != [*map(id, kept)]
    return kept is not None and value != kept


def _as_it_was(value: Any, kept: Any) -> Any:
    """Return the very object, with the content that it had."""
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            value.copy_(kept)
    elif type(value) is list:
        value[:] = kept
    elif type(value) in (dict, set):
        value.clear()
        value.update(kept)
    return value
