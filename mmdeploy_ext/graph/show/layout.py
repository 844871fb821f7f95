"""Places for the boxes of a layered graph drawing; see `draw_graph`. Plain Python."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SWEEPS = 8
BEND_WIDTH = 8.0
"""Pixels that an edge takes in a layer that it passes."""
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels, y downwards.

    Attributes:
        centres: (x, y) per box.
        routes: points per edge, from the bottom of a box to the top of another.
        width: of everything.
        height: of everything.
    """

    centres: list[Point]
    routes: list[list[Point]]
    width: float
    height: float


class _Grid:
    """Boxes and bends in layers. A slot is a box (its number) or a bend of an edge."""

    def __init__(self, sizes: Sequence[Point], edges: Sequence[tuple[int, int]]) -> None:
        self.widths = [width for width, _ in sizes]
        self.heights = [height for _, height in sizes]
        self.layer = _layers(len(sizes), edges)
        self.chains = [self._chain(source, end) for source, end in edges]
        self.rows: list[list[int]] = [[] for _ in range(max(self.layer, default=-1) + 1)]
        for slot, layer in enumerate(self.layer):
            self.rows[layer].append(slot)
        self.above: list[list[int]] = [[] for _ in self.layer]
        self.below: list[list[int]] = [[] for _ in self.layer]
        for chain in self.chains:
            for upper, lower in itertools.pairwise(chain):
                self.above[lower].append(upper)
                self.below[upper].append(lower)

    def _chain(self, source: int, end: int) -> list[int]:
        """Return the slots of an edge; new bends in the layers between its ends."""
        bends = []
        for layer in range(self.layer[source] + 1, self.layer[end]):
            bends.append(len(self.layer))
            self.layer.append(layer)
            self.widths.append(BEND_WIDTH)
            self.heights.append(0.0)
        return [source, *bends, end]

    def order(self) -> None:
        """Order every row by the median of its neighbours, down and up in turn."""
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            places = {slot: at for row in self.rows for at, slot in enumerate(row)}
            neighbours = self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                keys = {
                    slot: statistics.median(places[other] for other in neighbours[slot])
                    if neighbours[slot]
                    else places[slot]
                    for slot in row
                }
                row.sort(key=keys.__getitem__)
                places.update((slot, at) for at, slot in enumerate(row))

    def place(self, gap: float) -> list[float]:
        """Return the x of every slot's centre: near its neighbours, no two closer than `gap`."""
        x = [0.0] * len(self.layer)
        for row in self.rows:
            self._spread(row, dict.fromkeys(row, 0.0), x, gap)
        for sweep in range(2 * SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                wanted = {
                    slot: statistics.fmean(x[other] for other in neighbours[slot])
                    if neighbours[slot]
                    else x[slot]
                    for slot in row
                }
                self._spread(row, wanted, x, gap)
        return x

    def _spread(self, row: list[int], wanted: dict[int, float], x: list[float], gap: float) -> None:
        """Put the slots of a row as near to where they want to be as their distances allow.

        Slots that push each other form a block, which sits at the mean of what its members want.
        """
        blocks: list[list] = []  # [offset of the mean, number of slots, slots with their offsets]
        edge = 0.0
        offsets = {}
        for before, slot in zip([None, *row], row, strict=False):
            if before is not None:
                room = gap if min(self.widths[before], self.widths[slot]) > BEND_WIDTH else gap / 2
                edge += (self.widths[before] + self.widths[slot]) / 2 + room
            offsets[slot] = edge
            blocks.append([wanted[slot] - edge, 1, [slot]])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                mean, count, slots = blocks.pop()
                last = blocks[-1]
                last[0] = (last[0] * last[1] + mean * count) / (last[1] + count)
                last[1] += count
                last[2] += slots
        for mean, _, slots in blocks:
            for slot in slots:
                x[slot] = mean + offsets[slot]


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the layer of every box: one below the lowest that it reads; sources just above their readers."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for source, end in edges:
        above[end].append(source)
        below[source].append(end)
    waiting = [len(boxes) for boxes in above]
    ready = [box for box in range(count) if not waiting[box]]
    layer, order = [0] * count, []
    while ready:
        box = ready.pop()
        order.append(box)
        for end in below[box]:
            layer[end] = max(layer[end], layer[box] + 1)
            waiting[end] -= 1
            if not waiting[end]:
                ready.append(end)
    for box in reversed(order):
        if not above[box] and below[box]:
            layer[box] = min(layer[end] for end in below[box]) - 1
    return layer


def arrange(sizes: Sequence[Point], edges: Sequence[tuple[int, int]], gap_x: float, gap_y: float) -> Layout:
    """Place boxes in layers, edges going down.

    Args:
        sizes: (width, height) per box.
        edges: (from, to) between boxes; without a cycle.
        gap_x: least distance between boxes of a layer.
        gap_y: distance between layers.
    """
    grid = _Grid(sizes, edges)
    grid.order()
    x = grid.place(gap_x)
    left = min((x[slot] - grid.widths[slot] / 2 for slot in range(len(x))), default=0.0)
    right = max((x[slot] + grid.widths[slot] / 2 for slot in range(len(x))), default=0.0)
    tops, top = [], 0.0
    for row in grid.rows:
        tops.append(top)
        top += max(grid.heights[slot] for slot in row) + gap_y
    tall = [max(grid.heights[slot] for slot in row) for row in grid.rows]
    middle = [tops[layer] + tall[layer] / 2 for layer in grid.layer]
    centres = [(x[box] - left, middle[box]) for box in range(len(sizes))]
    routes = []
    for chain in grid.chains:
        start, end = chain[0], chain[-1]
        points = [(x[start] - left, middle[start] + grid.heights[start] / 2)]
        for slot in chain:
            layer = grid.layer[slot]
            points += [(x[slot] - left, tops[layer]), (x[slot] - left, tops[layer] + tall[layer])]
        points[1:3] = points[2:3]  # a box: from its edge to the end of its layer
        points[-1:] = [(x[end] - left, middle[end] - grid.heights[end] / 2)]
        routes.append([point for point, _ in itertools.groupby(points)])
    return Layout(centres, routes, right - left, top - gap_y if grid.rows else 0.0)
