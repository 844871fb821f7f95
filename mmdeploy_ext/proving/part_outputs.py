"""Outputs of parts of a detector, kept while its limits and thresholds alone change from run to run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.core.config import replaced_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.families.limits import Limit

MAX_KEPT_BYTES = 1 << 30
"""Bytes of outputs of parts of the detector that are kept for equal inputs; the newest are kept in any case.

Pooled regions are 50 MB.
"""


class PartOutputs:
    """The outputs of the parts of a detector for the inputs that they had.

    Attributes:
        model: the detector.
        outputs: part, hooks on its layers and contents of its inputs -> outputs.
        rounding: whether layers round in another way at the moment, so that no output is kept or reused.
        seconds: how long it took to keep outputs, and to find them again.
    """

    def __init__(self, model: torch.nn.Module, outputs: dict[Hashable, Any]) -> None:
        self.model, self.outputs, self.rounding, self.seconds = model, outputs, False, 0.0

    @contextlib.contextmanager
    def computed_once(self, limits: Sequence[Limit], reuse: bool = True) -> Iterator[None]:
        """Inside the block the parts of the detector whose outputs no limit changes run once per input.

        They run again while `rounding` is set, or if outputs were dropped for `MAX_KEPT_BYTES`. Exports
        have to be made outside of it, and hooks registered before it. Without `reuse` all parts run as they
        would outside, and copies of their outputs are kept for later blocks.

        `limits` are those of the detector; `config` of one may be the `vars` of a part, which then runs every
        time. That of a layer inside a part is not seen: what depends on it has to call the `forward` of the
        part's class in place of the part.
        """
        model = self.model
        limiting = {id(limit.config) for limit in limits}
        with contextlib.ExitStack() as stack:
            extract = self._once(model, model.extract_feat, reuse)
            stack.enter_context(replaced_entry(vars(model), 'extract_feat', extract))
            for part in _parts_with_forward(model):
                if id(vars(part)) not in limiting:
                    forward = self._once(part, part.forward, reuse)
                    stack.enter_context(replaced_entry(vars(part), 'forward', forward))
            yield

    def _once(self, part: torch.nn.Module, run: Callable[..., Any], reuse: bool) -> Callable[..., Any]:
        """Return a function that calls `run` once for equal arguments, and returns copies of its result.

        `run` is a method of `part`. Hooks on the layers inside it change what it returns, see
        `ImageFamily.exaggerated`; PyTorch gives their numbers once only. Without `reuse` it calls `run` every
        time, and returns the result itself.
        """
        hooks = tuple(number for layer in part.modules() for number in layer._forward_hooks)

        def once(*args: Any, **kwargs: Any) -> Any:
            if self.rounding:
                return run(*args, **kwargs)
            with self._timed():
                key = (run, hooks, *content_of((args, kwargs)))
                if reuse and key in self.outputs:
                    return _copied(self.outputs[key])
            outputs = run(*args, **kwargs)
            with self._timed():
                self._keep(key, _copied(outputs))
            return outputs

        return once

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the seconds of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _keep(self, key: Hashable, outputs: Any) -> None:
        """Keep the outputs of a part, and of the others the last ones that memory is allowed for."""
        self.outputs[key] = outputs
        sizes = {stored_key: _bytes_of(values) for stored_key, values in self.outputs.items()}
        excess = sum(sizes.values()) - MAX_KEPT_BYTES
        for stored_key in list(sizes)[:-1]:  # the oldest first
            if excess <= 0:
                break
            excess -= sizes[stored_key]
            del self.outputs[stored_key]


def _parts_with_forward(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the outermost parts that are called as modules; heads of regions call theirs by methods."""
    for part in module.children():
        if type(part).forward is torch.nn.Module.forward:  # has none
            yield from _parts_with_forward(part)
        else:
            yield part


def _bytes_of(value: Any) -> int:
    """Return the bytes of the tensors in nested outputs."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


def _copied(value: Any) -> Any:
    """Return a copy of nested outputs, which callers may change."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        copied = copy.copy(value)  # of its own type, whose keys may be attributes
        for key, entry in value.items():
            copied[key] = _copied(entry)
        return copied
    if isinstance(value, list | tuple):
        make = getattr(type(value), '_make', type(value))  # of a named tuple
        return make(map(_copied, value))
    return value


def content_of(value: Any) -> Iterator[Any]:
    """Yield what distinguishes a value: hashes of tensors and arrays, `repr` of everything else.

    Of containers and dataclasses it is that of their entries and fields. Another object without a `repr` of
    its own, or with tensors or arrays as attributes, which a `repr` shortens, differs from all others, and
    from itself in another call.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        # half the time of BLAKE2 on a CPU with instructions for it; the bytes are not copied
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        yield value.shape, str(value.dtype), hashlib.sha256(content).digest()
    elif isinstance(value, np.ndarray):
        yield value.shape
        yield from content_of(value.tolist())
    elif isinstance(value, dict):
        yield len(value)
        for key, entry in value.items():
            yield key
            yield from content_of(entry)
    elif isinstance(value, list | tuple):
        yield len(value)
        for entry in value:
            yield from content_of(entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name
            yield from content_of(getattr(value, field.name))
    else:
        yield repr(value) if _is_told_by_repr(value) else object()


def _is_told_by_repr(value: Any) -> bool:
    """Return whether `repr` tells an object from others; that of `object` is an address, which recurs."""
    if type(value).__repr__ is object.__repr__:
        return False
    attributes = getattr(value, '__dict__', None)
    entries = attributes.values() if isinstance(attributes, dict) else ()
    return not any(isinstance(entry, torch.Tensor | np.ndarray) for entry in entries)
