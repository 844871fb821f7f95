"""What an observed run writes down: events at lines of code, and the sizes that were read."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from mmdeploy_ext.lint.sites import Site, caller
from mmdeploy_ext.lint.sizes import Origins


@dataclasses.dataclass(frozen=True)
class Event:
    """One rule met at one line, once.

    Attributes:
        rule: its id.
        site: the line; None where the fault is of the model as a whole.
        detail: what was seen: names, numbers.
        origins: the sizes that it depends on; None where it does not depend on sizes.
    """

    rule: str
    site: Site | None
    detail: str
    origins: Origins | None = None


class Recorder:
    """Events of one run, and the sizes that were read in it.

    Attributes:
        events: in the order in which they happened.
        sizes: origin -> size.
        comparisons: (function, numbers) of comparisons of sizes with numbers, for top-k.
        handled: sizes that a function took which has another form for tensors.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.sizes: dict[tuple[str, int, int], int] = {}
        self.comparisons: list[tuple[str, list[Any], Origins]] = []
        self.handled: Origins = frozenset()
        self._reads: collections.Counter[str] = collections.Counter()

    def add(self, rule: str, detail: str, site: Site | None, origins: Origins | None = None) -> None:
        """Write an event down."""
        self.events.append(Event(rule, site, detail, origins))

    def read_sizes(self, site: Site, shape: tuple[int, ...]) -> list[Origins]:
        """Note that a line read a shape; return where each axis comes from."""
        count = self._reads[site.text]
        self._reads[site.text] += 1
        keys = [(site.text, count, axis) for axis in range(len(shape))]
        self.sizes.update(zip(keys, shape, strict=True))
        return [frozenset([key]) for key in keys]

    def compared(self, origins: Origins, values: list[Any], name: str) -> None:
        """Note that a size decided something: `SizeInt` calls it for every comparison."""
        site = caller()
        if site is None:
            return
        if site.waiting == 'handled':
            self.handled |= origins
        if not site.waiting:  # min(k, size): a guard or a branch chooses no number
            self.comparisons.append((f'{site.file} {site.function}', values, origins))
        if site.waiting in ('branch', 'loop', 'counted'):
            rule = 'size-in-branch' if site.waiting == 'branch' else 'size-in-loop'
            shown = ' and '.join(map(str, values[:2]))
            self.add(
                rule, f'size {shown} compared' if len(values) > 1 else f'size {shown} tested', site, origins
            )

    def converted(self, origins: Origins, name: str) -> None:
        """Note that a size became a plain Python number."""
        site = caller()
        if site is not None and site.waiting != 'guard':
            self.add('size-to-python', f'{name.strip("_")}() of a size', site, origins)

    def changed_in_place(self, origins: Origins) -> None:
        """Note that a size was changed by `+=` or the like."""
        site = caller()
        if site is not None:
            self.add('size-changed-in-place', 'a size is changed in place', site, origins)

    def fixed_sizes(self, other: Recorder) -> Origins:
        """Return the sizes that were the same in a run with other inputs."""
        return frozenset(key for key, size in self.sizes.items() if other.sizes.get(key) == size)
