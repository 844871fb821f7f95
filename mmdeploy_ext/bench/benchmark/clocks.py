"""The time of the parts of a PyTorch model, without changing the model."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class PartClock:
    """Context manager that measures the time in functions of objects; nested calls count for the outer one.

    Attributes:
        methods: part -> (object, name of its function); the functions are timed inside the block.
        seconds: part -> seconds so far.
    """

    def __init__(self, methods: Mapping[str, Sequence[tuple[object, str]]]) -> None:
        self.methods, self.seconds = methods, dict.fromkeys(methods, 0.0)
        self._inside = False
        self._originals: list[tuple[object, str, Any]] = []

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
        """Seconds per part since `before`, a copy of `seconds`."""
        return {part: self.seconds[part] - start for part, start in before.items()}

    def __enter__(self) -> PartClock:
        for part, pairs in self.methods.items():
            for owner, name in pairs:
                self._originals.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._originals:  # backwards, since a function may be in two parts
            owner, name, original = self._originals.pop()
            if original is None:
                delattr(owner, name)  # the class has it
            else:
                setattr(owner, name, original)
