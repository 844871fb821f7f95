"""Where the time of a run in PyTorch goes: clocks that are put into a model and leave nothing behind."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch


class NetworkClock:
    """Context manager that notes when the last layer with parameters has run; post-processing follows."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.layers = [
            module for module in model.modules() if next(module.parameters(recurse=False), None) is not None
        ]
        self.handles: list[Any] = []
        self.seconds = 0.0

    def __enter__(self) -> NetworkClock:
        self.handles = [layer.register_forward_hook(self._note) for layer in self.layers]
        return self

    def _note(self, *_: object) -> None:
        self.seconds = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


class PartClock:
    """Times functions of objects while it is active; nested calls count for the outer one only.

    It is given part -> (object or module, name of its function) pairs, and puts clocks in as attributes of
    the objects themselves.
    """

    def __init__(self, methods: Mapping[str, Sequence[tuple[object, str]]]) -> None:
        self.methods, self.seconds = methods, dict.fromkeys(methods, 0.0)
        self._inside = False
        self._own: list[tuple[object, str, Any]] = []

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - start

        return run

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds of each part since its clock stood at `before`."""
        return {part: self.seconds[part] - start for part, start in before.items()}

    def __enter__(self) -> PartClock:
        for part, pairs in self.methods.items():
            for owner, name in pairs:
                self._own.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, own in self._own:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
