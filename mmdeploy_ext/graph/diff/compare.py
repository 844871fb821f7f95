"""Where two models part: what a comparison found, and the comparison of two files. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import InferenceError, Mm2OnnxError, UsageError
from mmdeploy_ext.graph import run
from mmdeploy_ext.graph.diff.align import align
from mmdeploy_ext.graph.diff.nodes import Constants, NodeRunner, Program
from mmdeploy_ext.graph.diff.region import regions
from mmdeploy_ext.graph.diff.scope import module_of
from mmdeploy_ext.graph.diff.structure import ONLY_HERE, changes
from mmdeploy_ext.graph.diff.walk import BORN_RTOL, FREE_RTOL, INNER, UNKNOWN, Reference, compare, walk
from mmdeploy_ext.graph.io import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import onnx

    from mmdeploy_ext.graph.diff.region import Region
    from mmdeploy_ext.graph.diff.structure import Change
    from mmdeploy_ext.graph.diff.walk import Walk

MAX_EVIDENCE = 6
STRUCTURE = ('node', 'wiring', 'function')
"""Kinds of changes after which other inner tensors need not be an error."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """What counts as a difference.

    Attributes:
        born: of a node that is fed with the reference's values, relative to the largest value.
        free: of a tensor of the whole model.
    """

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
        node: name of the node that writes it.
        op_type: of the node.
        module: PyTorch module that it was exported from, '' where that is not known.
        tensor: its name.
        shape: as text, '-' where the graph could not be run so far.
        paired: what it was compared with, '' when with nothing.
        how: by what it was paired.
        error: of the whole model, relative; None when there is none or it is infinite (see `state`).
        born: of the node alone.
        state: 'equal', 'born here', 'passed on', 'inner' or 'unknown'.
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
        node: the first node that may be guilty.
        op_type: of the node.
        module: PyTorch module that it was exported from.
        tensor: what the node writes.
        paired: what PyTorch, or the other file, has there.
        born: error of the first tensor that is known to be wrong, None when infinite.
        error: the same tensor's in the whole model.
        nodes: all nodes that may be guilty, in topological order.
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
        entries: tensors of the graph on trial in topological order.
        differences: where errors are born, in topological order.
        outputs: the entries of the graph's outputs.
        changes: differences of structure, to the other file or to a fresh export.
        notes: what else there is to know.
        bars: what counted.
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
        return self.differences[0] if self.differences else None

    @property
    def compared(self) -> int:
        """How many tensors were compared."""
        return sum(entry.state not in (INNER, UNKNOWN) for entry in self.entries)

    @property
    def restructured(self) -> bool:
        """Whether two files have other nodes, or nodes that are joined in another way."""
        return self.subject.get('kind') == 'files' and any(
            change['kind'] in STRUCTURE for change in self.changes
        )

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
        content = dataclasses.asdict(self)
        first = dataclasses.asdict(self.first) if self.first else None
        return dict(
            equal=self.equal, restructured=self.restructured, compared=self.compared, first=first, **content
        )


def entries_of(found: Walk, bars: Bars, module: Callable[[int], str] | None = None) -> list[Entry]:
    """Return the rows of a walk for tables.

    Args:
        found: the walk.
        bars: what counts.
        module: position -> module path; None reads the names of nodes.
    """
    index, entries = found.program.index, []
    for depth, row in enumerate(found.rows.values()):
        node, reference = index.nodes[row.position], row.reference
        path = module(row.position) if module else module_of(node)
        state = row.state(bars.born, bars.free)
        entries.append(
            Entry(
                depth,
                index.label(row.position),
                node.op_type,
                (reference.module if reference else '') or path,
                row.tensor,
                '-' if row.shape is None else 'x'.join(map(str, row.shape)) or 'scalar',
                reference.label if reference else '',
                reference.how if reference else '',
                _finite(row.error),
                _finite(row.born),
                state,
                row.reason,
            )
        )
    return entries


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def differences_of(
    found: Walk,
    bars: Bars,
    explain: Callable[[int], list[str]],
    module: Callable[[int], str] | None = None,
) -> list[Difference]:
    """Return where errors are born.

    Args:
        found: the walk.
        bars: what counts.
        explain: position of a node -> what is known about it.
        module: position -> module path; None reads the names of nodes.
    """
    return [_difference(found, region, explain, module) for region in regions(found, bars.born)]


def _difference(
    found: Walk, region: Region, explain: Callable[[int], list[str]], module: Callable[[int], str] | None
) -> Difference:
    index, rows = found.program.index, [found.rows[tensor] for tensor in region.tensors]
    positions = list(dict.fromkeys(row.position for row in rows))
    evidence = {position: explain(position) for position in positions}
    told = [position for position in positions if evidence[position]]
    causes = [at for at in told if any(not line.endswith(ONLY_HERE) for line in evidence[at])]
    guilty = (causes or told or positions)[0]
    exact = len(positions) == 1 or bool(causes) or len(told) == 1
    first, last = next(row for row in rows if row.position == guilty), rows[-1]
    reference = last.reference
    path = module(guilty) if module else module_of(index.nodes[guilty])
    known = evidence[guilty] if exact else []  # that one of them is new says nothing about the others
    lines = list(dict.fromkeys([*known, *filter(None, (row.reason for row in rows))]))
    return Difference(
        index.label(guilty),
        index.nodes[guilty].op_type,
        path or (reference.module if reference else ''),
        first.tensor,
        reference.label if reference else '',
        _finite(last.born),
        _finite(last.error),
        [index.label(position) for position in positions],
        exact,
        lines[:MAX_EVIDENCE],
    )


def engine_notes(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], found: Walk, bars: Bars
) -> list[str]:
    """Run the model as users do and compare with the node-by-node run; returns what there is to say."""
    try:
        outputs = run.run(model, feeds, optimization='all')
    except Mm2OnnxError as error:
        return [f'ONNX Runtime cannot run the whole model: {error}']
    notes = []
    for name, array in outputs.items():
        if name not in found.free:
            continue
        error = compare(array, found.free[name])[0]
        if error is not None and error > bars.free:
            notes.append(
                f'output {name}: ONNX Runtime with all optimisations differs from the same nodes run one by '
                f'one (relative error {error:.2e}): ties, or an optimisation of the engine'
            )
    return notes


def explain_by(found: Sequence[Change], by_left: bool = True) -> Callable[[int], list[str]]:
    """Return a function: position of a node -> how it differs from its counterpart."""
    lines: dict[int, list[str]] = {}
    for change in found:
        position = change.left if by_left else change.right
        if position is not None:
            lines.setdefault(position, []).append(change.detail)
    return lambda position: lines.get(position, [])


def diff_files(
    left_path: str,
    right_path: str,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    rtol: float | None = None,
) -> Comparison:
    """Compare two files: their structure, and their tensors on the same inputs.

    Args:
        left_path: the reference.
        right_path: the graph on trial.
        feeds: by the left graph's names; None takes random ones.
        seed: of the random ones.
        rtol: above it an error is born; None takes `Bars`, and `HALF` where a file computes in float16.

    Raises:
        UsageError: the inputs of the two cannot be paired.
    """
    constants, runner = Constants(), NodeRunner()
    left, right = (Program(files.load(path), constants) for path in (left_path, right_path))
    bars = (HALF if left.is_half() or right.is_half() else Bars()).at(rtol)
    pairs = align(right, left)
    found = changes(right, left, pairs)
    random = feeds is None
    feeds = dict(run.random_feeds(left.index.model, seed) if feeds is None else feeds)
    run.check_feeds(left.index, feeds)
    missing = [name for name in right.index.inputs if pairs.tensors.get(name) not in feeds]
    if missing:
        raise UsageError(
            f'{right_path}: its inputs {", ".join(missing)} have no counterpart in {left_path}, which has '
            f'{", ".join(left.index.inputs)}'
        )
    first = walk(left, feeds, {}, runner)
    references = _references(right, pairs.tensors, first)
    theirs = {name: right.fitting(name, feeds[pairs.tensors[name]]) for name in right.index.inputs}
    theirs.update((name, value) for name, value in feeds.items() if name in right.defaults)
    second = walk(right, theirs, references, runner)
    entries = entries_of(second, bars)
    entries += _stepless_outputs(second, pairs.tensors, first, bars, len(entries))
    notes = engine_notes(right.index.model, theirs, second, bars)
    if random:
        notes.append(f'fed with random numbers (seed {seed}); --input feeds real ones')
    broken = [row.reason for row in first.rows.values() if row.reason]
    if broken:
        raise InferenceError(f'{left_path}: {broken[0]}')
    return Comparison(
        dict(kind='files', reference=str(left_path), file=str(right_path), inputs=shapes(feeds)),
        entries,
        differences_of(second, bars, explain_by(found)),
        outputs_of(right, entries),
        [dataclasses.asdict(change) for change in found],
        notes,
        bars,
        **_interface(left.index.outputs, right.index.outputs, pairs.tensors),
    )


def _interface(left: Sequence[str], right: Sequence[str], tensors: Mapping[str, str]) -> dict[str, Any]:
    """Return which outputs only the left graph has, which only the right one, and which have other names."""
    mates = {name: tensors.get(name) for name in right}
    return dict(
        missing=[name for name in left if name not in mates.values()],
        additional=[name for name, mate in mates.items() if mate not in left],
        renamed={mate: name for name, mate in mates.items() if mate in left and mate != name},
    )


def _references(program: Program, tensors: Mapping[str, str], other: Walk) -> dict[str, Reference]:
    return {
        name: Reference(other.free[mate], mate, how='structure')
        for name, mate in tensors.items()
        if mate in other.free and program.index.producer(name) is not None
    }


def _stepless_outputs(
    found: Walk, tensors: Mapping[str, str], other: Walk, bars: Bars, depth: int
) -> list[Entry]:
    """Return entries of outputs that no step of the walk makes: constants, and inputs that are outputs."""
    entries, index = [], found.program.index
    for name in index.outputs:
        mate = tensors.get(name, '')
        if name in found.rows or name not in found.free or mate not in other.free:
            continue
        error, reason = compare(found.free[name], other.free[mate])
        wrong = error is None or error > bars.free
        kind = 'input' if name in index.inputs else 'Constant'
        shape = 'x'.join(map(str, found.free[name].shape)) or 'scalar'
        position = index.producer(name)
        entries.append(
            Entry(
                depth + len(entries),
                name if position is None else index.label(position),
                kind,
                '',
                name,
                shape,
                mate,
                'structure',
                _finite(error),
                _finite(error),
                'born here' if wrong else 'equal',
                reason or ('is a constant in this file' if wrong and kind == 'Constant' else ''),
            )
        )
    return entries


def outputs_of(program: Program, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a graph's outputs, in the graph's order."""
    by_name = {entry.tensor: entry for entry in entries}
    return [by_name[name] for name in program.index.outputs if name in by_name]


def shapes(feeds: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return name -> shape as text."""
    return {name: 'x'.join(map(str, array.shape)) or 'scalar' for name, array in feeds.items()}
