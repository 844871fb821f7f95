"""From errors of tensors to places where errors are born. Needs no torch.

A tensor without a reference is no evidence: exporters take operators apart.
It counts as right when as many values as it has come out right behind it. What is left between the last
tensors that are right and the first that is wrong is a region; its first node is the one to look at.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from mmdeploy_ext.graph.diff.nodes import SHAPE_READERS
from mmdeploy_ext.graph.diff.walk import BORN, BORN_RTOL, Row, Walk, informative


@dataclasses.dataclass(frozen=True)
class Region:
    """Suspects in topological order; the last one is known to be wrong where the region `ends`."""

    tensors: tuple[str, ...]
    ends: bool


def regions(walk: Walk, born_rtol: float = BORN_RTOL) -> list[Region]:
    """Return the regions in topological order of their first suspects; one per first suspect."""
    suspects = _suspects(walk, born_rtol)
    place = {tensor: index for index, tensor in enumerate(walk.rows)}
    found: dict[str, Region] = {}
    seen: set[str] = set()
    for tensor, row in walk.rows.items():
        if row.state(born_rtol) != BORN:
            continue
        above = sorted(_above(walk, row, suspects), key=place.__getitem__)
        seen.update(above)
        region = Region((*above, tensor), True)
        kept = found.get(region.tensors[0], region)
        found[region.tensors[0]] = min(kept, region, key=lambda one: len(one.tensors))
    rest = [tensor for tensor in walk.rows if tensor in suspects and tensor not in seen]
    if rest:
        found.setdefault(rest[0], Region(tuple(rest), False))
    return sorted(found.values(), key=lambda region: place[region.tensors[0]])


def _above(walk: Walk, row: Row, suspects: set[str]) -> set[str]:
    """Return the suspects that a tensor is computed from, through suspects only."""
    found: set[str] = set()
    waiting = list(walk.program.index.reads(row.position))
    while waiting:
        name = waiting.pop()
        if name in suspects and name not in found:
            found.add(name)
            waiting.extend(walk.program.index.reads(walk.rows[name].position))
    return found


def _suspects(walk: Walk, born_rtol: float) -> set[str]:
    """Return unpaired tensors that no right value proves, and that something wrong reads."""
    outputs = set(walk.program.index.outputs)
    suspected: dict[str, bool] = {}
    proven: dict[str, int] = {}
    for tensor, row in reversed(walk.rows.items()):
        if row.reference is not None:
            continue
        readers = list(_readers(walk, tensor))
        proven[tensor] = max((_proves(walk, reader, born_rtol, proven) for reader in readers), default=0)
        wrong = tensor in outputs or any(
            suspected.get(reader.tensor, reader.state(born_rtol) == BORN) for reader in readers
        )
        fails = bool(row.reason) and tensor not in walk.good
        suspected[tensor] = fails or (wrong and _may_be_wrong(walk, row, proven[tensor]))
    return {tensor for tensor, answer in suspected.items() if answer}


def _may_be_wrong(walk: Walk, row: Row, proven: int) -> bool:
    value = walk.good.get(row.tensor)
    if not isinstance(value, np.ndarray):
        return True
    if row.tensor in walk.program.static and value.dtype.kind != 'f':
        return False  # shapes: what they do shows in the node that uses them
    return proven < value.size


def _proves(walk: Walk, row: Row, born_rtol: float, proven: dict[str, int]) -> int:
    """Return how many values came out right because of what a row's node reads."""
    if row.reference is None:
        return proven.get(row.tensor, 0)
    value = walk.good[row.tensor]
    return value.size if row.state(born_rtol) != BORN and row.born is not None and informative(value) else 0


def _readers(walk: Walk, tensor: str) -> Iterator[Row]:
    index = walk.program.index
    for position in index.consumers(tensor):
        if index.nodes[position].op_type not in SHAPE_READERS:
            yield from (walk.rows[name] for name in index.writes(position) if name in walk.rows)
