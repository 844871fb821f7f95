"""What a comparison of two models found: tensors, places where errors are born, the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.graph.diff.program import SHAPE_READERS, Program
from mmdeploy_ext.graph.diff.structure import ONLY_HERE, Change
from mmdeploy_ext.graph.diff.walk import (
    BORN,
    BORN_RTOL,
    FREE_RTOL,
    INNER,
    UNKNOWN,
    ReferenceTensor,
    Row,
    Walk,
    informative,
)
from mmdeploy_ext.graph.io.modules import module_path
from mmdeploy_ext.proving.tensors import shape_text

MAX_EVIDENCE = 6
STRUCTURE = ('node', 'wiring', 'function')
"""Kinds of changes after which other inner tensors need not be an error."""
NOTHING = ReferenceTensor(np.empty(0), how='')


@dataclasses.dataclass(frozen=True)
class Bars:
    """What counts as a difference, relative to the largest value: `born` in one node, `free` in the whole."""

    born: float = BORN_RTOL
    free: float = FREE_RTOL

    def at(self, rtol: float | None) -> Bars:
        """Return bars at which an error is born above `rtol`; None leaves them."""
        return self if rtol is None else Bars(rtol, max(self.free, rtol))


HALF = Bars(born=3e-3, free=2e-2)
"""What counts where one of the two is float16."""


@dataclasses.dataclass
class Entry:
    """One tensor of the graph on trial, for tables and plots.

    Attributes:
        depth: place in topological order.
        node: name of the node that writes it; the next two are of the node, too.
        module: PyTorch module that it was exported from, '' where that is not known.
        shape: as text, '-' where the graph could not be run so far.
        paired: what it was compared with, '' when with nothing; `how` says by what.
        error: of the whole model, relative; None when there is none or it is infinite (see `state`).
        born: of the node alone.
        state: see `walk.Row.state`.
        reason: why numbers do not tell.
    """

    depth: int
    node: str
    op_type: str
    module: str
    tensor: str
    shape: str
    paired: str
    how: str
    error: float | None
    born: float | None
    state: str
    reason: str = ''


@dataclasses.dataclass
class Difference:
    """A place where an error is born.

    Attributes:
        node: the first node that may be at fault, with its operator, PyTorch module and output.
        paired: what PyTorch, or the other file, has there.
        born: error of the first tensor that is known to be wrong, None when infinite.
        error: the same tensor's in the whole model.
        nodes: all nodes that may be at fault, in topological order.
        exact: whether it is one node.
        evidence: what is known about the cause.
    """

    node: str
    op_type: str
    module: str
    tensor: str
    paired: str
    born: float | None
    error: float | None
    nodes: list[str]
    exact: bool
    evidence: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Comparison:
    """What was found.

    Attributes:
        subject: what was compared with what.
        entries: tensors of the graph on trial in topological order; `outputs` are those of its outputs.
        differences: where errors are born, in topological order.
        changes: differences of structure, to the other file or to a fresh export.
        notes: what else there is to know.
        guessed: whether tensors were paired by names, values and places alone, without a fresh export.
        missing: outputs of the reference that the graph on trial lacks.
        additional: outputs of the graph on trial that the reference does not have.
        renamed: output of the reference -> what the graph on trial calls it.
        graph: how it differs from a fresh export, whatever its numbers on these inputs; '' when it is the
            same, or was compared with none.
    """

    subject: dict[str, Any]
    entries: list[Entry]
    differences: list[Difference]
    outputs: list[Entry]
    changes: list[dict[str, Any]]
    notes: list[str]
    bars: Bars
    guessed: bool = False
    missing: list[str] = dataclasses.field(default_factory=list)
    additional: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    graph: str = ''

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return next(iter(self.differences), None)

    @property
    def first_depth(self) -> int:
        """The depth of the tensor that the first difference is seen at."""
        return next(entry.depth for entry in self.entries if entry.tensor == self.first.tensor)

    @property
    def compared(self) -> int:
        """How many tensors were compared."""
        return sum(entry.state not in (INNER, UNKNOWN) for entry in self.entries)

    @property
    def restructured(self) -> bool:
        """Whether two files have other nodes, or nodes that are joined in another way."""
        kinds = {change['kind'] for change in self.changes}
        return self.subject.get('kind') == 'files' and not kinds.isdisjoint(STRUCTURE)

    @property
    def equal(self) -> bool:
        """Whether both have the same outputs, up to their names, and numbers and graph agree."""
        return self.agreeing and not self.missing and not self.additional and not self.graph

    @property
    def agreeing(self) -> bool:
        """Whether all outputs that both have agree, something was compared, and no error is born anywhere.

        In two files of another structure inner tensors may differ, and which of them belong together is a
        guess: there the outputs decide.
        """
        agree = all(entry.state == 'equal' for entry in self.outputs)
        inside = not self.differences or (self.restructured and bool(self.outputs))
        return inside and agree and self.compared > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        first = dataclasses.asdict(self.first) if self.first else None
        facts = dict(equal=self.equal, restructured=self.restructured, compared=self.compared, first=first)
        return facts | dataclasses.asdict(self)


def entries_of(found: Walk, bars: Bars, module: Callable[[int], str] | None = None) -> list[Entry]:
    """Return the rows of a walk for tables.

    `module` is position -> module path; None reads the names of nodes.
    """
    index, entries = found.program.index, []
    for depth, row in enumerate(found.rows.values()):
        node, reference = index.nodes[row.position], row.reference or NOTHING
        path = reference.module or (module(row.position) if module else module_path(node))
        shape = '-' if row.shape is None else shape_text(row.shape)
        names = (index.label(row.position), node.op_type, path, row.tensor, shape)
        figures = (finite(row.error), finite(row.born), row.state(bars.born, bars.free), row.reason)
        entries.append(Entry(depth, *names, reference.label, reference.how, *figures))
    return entries


def finite(value: float | None) -> float | None:
    """Return an error, None where it is infinite: JSON has no such number."""
    return value if value is not None and math.isfinite(value) else None


def differences_of(
    found: Walk, bars: Bars, explain: Callable[[int], list[str]], module: Callable[[int], str] | None = None
) -> list[Difference]:
    """Return where errors are born.

    `explain` is position of a node -> what is known about it; for `module` see `entries_of`.
    """
    return [_difference(found, region, explain, module) for region in regions(found, bars.born)]


def _difference(
    found: Walk, region: Region, explain: Callable[[int], list[str]], module: Callable[[int], str] | None
) -> Difference:
    index, rows = found.program.index, [found.rows[tensor] for tensor in region.tensors]
    positions = list(dict.fromkeys(row.position for row in rows))
    evidence = {position: explain(position) for position in positions}
    explained = [position for position in positions if evidence[position]]
    causes = [at for at in explained if any(not line.endswith(ONLY_HERE) for line in evidence[at])]
    at_fault = (causes or explained or positions)[0]
    exact = len(positions) == 1 or bool(causes) or len(explained) == 1
    first, last = next(row for row in rows if row.position == at_fault), rows[-1]
    node, reference = index.nodes[at_fault], last.reference or NOTHING
    path = (module(at_fault) if module else module_path(node)) or reference.module
    known = evidence[at_fault] if exact else []  # that one of them is new says nothing about the others
    lines = list(dict.fromkeys([*known, *filter(None, (row.reason for row in rows))]))
    names = (index.label(at_fault), node.op_type, path, first.tensor, reference.label)
    nodes = [index.label(position) for position in positions]
    return Difference(*names, finite(last.born), finite(last.error), nodes, exact, lines[:MAX_EVIDENCE])


def explain_by(found: Sequence[Change]) -> Callable[[int], list[str]]:
    """Return position of a node of the left graph -> how it differs from its counterpart."""
    return lambda position: [change.detail for change in found if change.left == position]


def outputs_of(program: Program, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a graph's outputs, in the graph's order."""
    by_name = {entry.tensor: entry for entry in entries}
    return [by_name[name] for name in program.index.outputs if name in by_name]


def shapes(feeds: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return name -> shape as text."""
    return {name: shape_text(array.shape) for name, array in feeds.items()}


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
