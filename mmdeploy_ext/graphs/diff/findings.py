"""The findings of a comparison of two models: tensors, places where errors are born, the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import shape_text
from mmdeploy_ext.graphs.diff.program import SHAPE_READERS
from mmdeploy_ext.graphs.diff.structure import (
    BORN,
    BORN_RTOL,
    FREE_RTOL,
    INNER,
    ONLY_HERE,
    UNKNOWN,
    Change,
    ReferenceTensor,
    Row,
    Walk,
    is_informative,
)
from mmdeploy_ext.graphs.io.files import module_path

MAX_EVIDENCE = 6
"""Largest number of observations about a difference."""
STRUCTURE = ('node', 'wiring', 'function')
"""Kinds of changes after which other inner tensors need not be an error."""
VALUES = ('attribute', 'initializer', 'inside')
"""Kinds of changes that only some inputs may reach, such as another threshold."""
NO_REFERENCE = ReferenceTensor(np.empty(0), how='')
"""Stands for a missing reference."""


@dataclasses.dataclass(frozen=True)
class DiffBars:
    """Relative errors above which values differ, see `structure.compare`.

    Attributes:
        born: for one node on the reference's values.
        free: for the whole model from its inputs.
    """

    born: float = BORN_RTOL
    free: float = FREE_RTOL

    def at(self, rtol: float | None) -> DiffBars:
        """Return bars with `rtol` for one node, and at least `rtol` for the whole model."""
        return self if rtol is None else DiffBars(rtol, max(self.free, rtol))


HALF_DIFF = DiffBars(born=3e-3, free=2e-2)
"""The bars if one of the two models is float16."""


def diff_bars_of(precision: str | None) -> DiffBars:
    return HALF_DIFF if precision == 'fp16' else DiffBars()


@dataclasses.dataclass
class Entry:
    """One tensor of the graph on trial, for tables and plots.

    Attributes:
        depth: place in topological order.
        module: PyTorch module of the node, or ''.
        shape: as text, '-' if the node or one before it failed.
        paired: label of the reference tensor, or ''.
        how: kind of the pairing, see `structure.ReferenceTensor`.
        error: relative error in the whole model; None if not compared or infinite.
        born: relative error of the node alone on the reference's inputs; None likewise.
        state: see `structure.Row.state`.
        reason: why numbers could not be compared, or why the node failed.
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
class Divergence:
    """A place where an error is born.

    Attributes:
        node: the node to look at: the first with evidence, else the first.
        paired: label of the reference of the first wrong tensor.
        born: error of the first wrong tensor, of its node alone; None if infinite or unknown.
        error: error of the same tensor in the whole model; None likewise.
        nodes: all nodes that may be at fault, in topological order.
        exact: whether `node` alone is at fault.
        evidence: observations about the cause.
        record: place of PyTorch's tensor in its order of execution; -1 if unknown.
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
    record: int = -1


@dataclasses.dataclass
class Comparison:
    """The result of a comparison.

    Attributes:
        subject: names of the compared things; `kind` is 'files' for two files.
        entries, differences: in topological order.
        changes: differences of structure: dicts of the fields of `structure.Change`.
        guessed: whether tensors were paired without a fresh export.
        missing, additional: outputs that only the reference, or only the graph on trial, has.
        renamed: output of the reference -> its name in the graph on trial.
        graph: how the graph differs from a fresh export, or ''.
        results: how the results differ from the results of the user's code, or ''.
    """

    subject: dict[str, Any]
    entries: list[Entry]
    differences: list[Divergence]
    outputs: list[Entry]
    changes: list[dict[str, Any]]
    notes: list[str]
    bars: DiffBars
    guessed: bool = False
    missing: list[str] = dataclasses.field(default_factory=list)
    additional: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    graph: str = ''
    results: str = ''

    @property
    def first(self) -> Divergence | None:
        return next(iter(self.differences), None)

    @property
    def first_depth(self) -> int:
        return next(entry.depth for entry in self.entries if entry.tensor == self.first.tensor)

    @property
    def compared(self) -> int:
        return sum(entry.state not in (INNER, UNKNOWN) for entry in self.entries)

    @property
    def restructured(self) -> bool:
        kinds = {change['kind'] for change in self.changes}
        return self.subject.get('kind') == 'files' and not kinds.isdisjoint(STRUCTURE)

    @property
    def other_values(self) -> list[str]:
        is_of_files = self.subject.get('kind') == 'files'
        places = [change['where'] for change in self.changes if is_of_files and change['kind'] in VALUES]
        return list(dict.fromkeys(places))

    @property
    def equal(self) -> bool:
        return self.agreeing and not (self.missing or self.additional or self.graph or self.results)

    @property
    def agreeing(self) -> bool:
        agree = all(entry.state == 'equal' for entry in self.outputs)
        inside = not self.differences or (self.restructured and bool(self.outputs))
        return inside and agree and self.compared > 0

    def to_json(self) -> dict[str, Any]:
        first = dataclasses.asdict(self.first) if self.first else None
        facts = dict(equal=self.equal, restructured=self.restructured, compared=self.compared, first=first)
        return facts | dataclasses.asdict(self)


def comparison_of(
    walk: Walk,
    bars: DiffBars,
    structure: Sequence[Change],
    subject: Mapping[str, Any],
    notes: Sequence[str] = (),
    module: Callable[[int], str] | None = None,
) -> Comparison:
    """Return the findings of a walk.

    `module` returns the PyTorch module of a node; None: read it from the node's name or metadata.
    """
    index = walk.program.index

    def module_of(position: int) -> str:
        return module(position) if module else module_path(index.nodes[position])

    entries = []
    for depth, row in enumerate(walk.rows.values()):
        reference, node = row.reference or NO_REFERENCE, row.tensor
        op_type = own_module = ''
        if row.position is not None:
            node, op_type = index.label(row.position), index.nodes[row.position].op_type
            own_module = module_of(row.position)
        entry = Entry(
            depth=depth,
            node=node,
            op_type=op_type or 'input',
            module=reference.module or own_module,
            tensor=row.tensor,
            shape='-' if row.shape is None else shape_text(row.shape),
            paired=reference.label,
            how=reference.how,
            error=finite(row.error),
            born=finite(row.born),
            state=row.state(bars.born, bars.free),
            reason=row.reason,
        )
        entries.append(entry)
    by_name = {entry.tensor: entry for entry in entries}

    def evidence(position: int) -> list[str]:
        return [change.detail for change in structure if change.left == position]

    return Comparison(
        subject=dict(subject),
        entries=entries,
        differences=[
            _divergence(walk, region, evidence, module_of)
            for region in regions(walk, bars.born)
            if walk.rows[region.tensors[-1]].position in walk.program.steps
        ],
        outputs=[by_name[name] for name in index.outputs if name in by_name],
        changes=[dataclasses.asdict(change) for change in structure],
        notes=list(notes),
        bars=bars,
    )


def finite(value: float | None) -> float | None:
    """None for infinity and NaN, which JSON lacks."""
    return value if value is not None and math.isfinite(value) else None


def _divergence(
    walk: Walk, region: Region, explain: Callable[[int], list[str]], module: Callable[[int], str]
) -> Divergence:
    index, rows = walk.program.index, [walk.rows[tensor] for tensor in region.tensors]
    positions = list(dict.fromkeys(row.position for row in rows))
    evidence = {position: explain(position) for position in positions}
    explained = [position for position in positions if evidence[position]]
    causes = [
        position for position in explained if any(not line.endswith(ONLY_HERE) for line in evidence[position])
    ]
    at_fault = (causes or explained or positions)[0]
    exact = len(positions) == 1 or bool(causes) or len(explained) == 1
    first, last = next(row for row in rows if row.position == at_fault), rows[-1]
    node, reference = index.nodes[at_fault], last.reference or NO_REFERENCE
    lines = list(evidence[at_fault]) if exact else []  # a new node is no evidence about others
    lines += [row.reason for row in rows if row.reason]
    if first.reference is not None:
        record = first.reference.record
    else:  # the one behind all that the node reads
        latest = walk.latest_input(first.position)
        record = latest + 1 if latest >= 0 else reference.record
    return Divergence(
        node=index.label(at_fault),
        op_type=node.op_type,
        module=module(at_fault) or reference.module,
        tensor=first.tensor,
        paired=reference.label,
        born=finite(last.born),
        error=finite(last.error),
        nodes=[index.label(position) for position in positions],
        exact=exact,
        evidence=list(dict.fromkeys(lines))[:MAX_EVIDENCE],
        record=record,
    )


def shape_texts(feeds: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: shape_text(array.shape) for name, array in feeds.items()}


@dataclasses.dataclass(frozen=True)
class Region:
    """Tensors that may be wrong, in topological order; `ends`: the last one has a reference and is wrong."""

    tensors: tuple[str, ...]
    ends: bool


def regions(walk: Walk, born_rtol: float = BORN_RTOL) -> list[Region]:
    """Return the regions of a walk in topological order of their first tensors."""
    index, suspects = walk.program.index, _suspects(walk, born_rtol)
    depths = {tensor: depth for depth, tensor in enumerate(walk.rows)}
    by_first: dict[str, Region] = {}
    covered: set[str] = set()
    for tensor, row in walk.rows.items():
        if row.state(born_rtol) != BORN:
            continue
        above: set[str] = set()
        waiting = [] if row.position is None else list(index.reads(row.position))
        while waiting:
            name = waiting.pop()
            if name in suspects and name not in above:
                above.add(name)
                waiting.extend(index.reads(walk.rows[name].position))
        covered |= above
        region = Region((*sorted(above, key=depths.__getitem__), tensor), ends=True)
        first = region.tensors[0]
        if first not in by_first or len(region.tensors) < len(by_first[first].tensors):
            by_first[first] = region
    rest = [tensor for tensor in walk.rows if tensor in suspects and tensor not in covered]
    if rest:
        by_first.setdefault(rest[0], Region(tuple(rest), ends=False))
    return sorted(by_first.values(), key=lambda region: depths[region.tensors[0]])


def _suspects(walk: Walk, born_rtol: float) -> set[str]:
    index, outputs = walk.program.index, set(walk.program.index.outputs)
    suspected: dict[str, bool] = {}
    proven_values: dict[str, int] = {}

    def count_proven(reader: Row) -> int:
        if reader.reference is None:
            return proven_values.get(reader.tensor, 0)
        value = walk.good[reader.tensor]
        is_right = reader.state(born_rtol) != BORN and reader.born is not None
        if not is_right or not isinstance(value, np.ndarray):
            return 0
        return value.size if is_informative(value) else 0

    for tensor, row in reversed(walk.rows.items()):
        if row.reference is not None:
            continue
        readers = [
            walk.rows[name]
            for position in index.consumers(tensor)
            if index.nodes[position].op_type not in SHAPE_READERS
            for name in index.writes(position)
            if name in walk.rows
        ]
        proven_values[tensor] = max(map(count_proven, readers), default=0)
        is_read_by_wrong = tensor in outputs or any(
            suspected.get(reader.tensor, reader.state(born_rtol) == BORN) for reader in readers
        )
        value = walk.good.get(tensor)
        may_be_wrong = True
        if isinstance(value, np.ndarray):
            # of a shape, what it does shows in the node that uses it
            is_shape = tensor in walk.program.static and value.dtype.kind != 'f'
            may_be_wrong = not is_shape and proven_values[tensor] < value.size
        failed = bool(row.reason) and tensor not in walk.good
        suspected[tensor] = failed or (is_read_by_wrong and may_be_wrong)
    return {tensor for tensor, is_suspect in suspected.items() if is_suspect}
