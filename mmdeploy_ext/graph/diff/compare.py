"""Where two files differ: in structure, and in tensors on the same inputs. Needs no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.core.errors import InferenceError, Mm2OnnxError, UsageError
from mmdeploy_ext.graph import run
from mmdeploy_ext.graph.diff import findings
from mmdeploy_ext.graph.diff.align import align
from mmdeploy_ext.graph.diff.findings import Bars, Comparison, Entry, finite
from mmdeploy_ext.graph.diff.program import Constants, NodeRunner, Program
from mmdeploy_ext.graph.diff.structure import changes
from mmdeploy_ext.graph.diff.walk import ReferenceTensor, Walk, compare, walk
from mmdeploy_ext.graph.feeds import check_feeds, random_feeds
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.proving.tensors import shape_text


def engine_notes(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], found: Walk, bars: Bars
) -> list[str]:
    """Run the model as users do and compare with the node-by-node run; returns what there is to say."""
    try:
        outputs = run.run(model, feeds, optimization='all')
    except Mm2OnnxError as error:
        return [f'ONNX Runtime cannot run the whole model: {error}']
    errors = {name: compare(array, found.free.get(name))[0] or 0.0 for name, array in outputs.items()}
    return [
        f'output {name}: ONNX Runtime with all optimisations differs from the same nodes run one by one '
        f'(relative error {error:.2e}): ties, or an optimisation of the engine'
        for name, error in errors.items()
        if error > bars.free
    ]


def diff_files(
    left_path: str,
    right_path: str,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    rtol: float | None = None,
) -> Comparison:
    """Compare two files, of which the left one is the reference: structure, and tensors on the same inputs.

    Args:
        left_path: the reference.
        right_path: the graph on trial.
        feeds: by the left graph's names; None takes random ones, from `seed`.
        seed: of the random ones.
        rtol: above it an error is born; None takes `Bars`, and `HALF` where a file computes in float16.

    Raises:
        UsageError: the inputs of the two cannot be paired.
    """
    constants, runner = Constants(), NodeRunner()
    left, right = (Program(files.load(path), constants) for path in (left_path, right_path))
    bars = (findings.HALF if left.is_half() or right.is_half() else Bars()).at(rtol)
    pairs = align(right, left)
    found = changes(right, left, pairs)
    random = feeds is None
    feeds = dict(random_feeds(left.index.model, seed) if feeds is None else feeds)
    check_feeds(left.index, feeds)
    if missing := [name for name in right.index.inputs if pairs.tensors.get(name) not in feeds]:
        raise UsageError(
            f'{right_path}: its inputs {", ".join(missing)} have no counterpart in {left_path}, which has '
            f'{", ".join(left.index.inputs)}'
        )
    first = walk(left, feeds, {}, runner)
    references = {
        name: ReferenceTensor(first.free[mate], mate, how='structure')
        for name, mate in pairs.tensors.items()
        if mate in first.free and right.index.producer(name) is not None
    }
    theirs = {name: right.fitting(name, feeds[pairs.tensors[name]]) for name in right.index.inputs}
    theirs.update((name, value) for name, value in feeds.items() if name in right.defaults)
    second = walk(right, theirs, references, runner)
    entries = findings.entries_of(second, bars)
    entries += _stepless_outputs(second, pairs.tensors, first, bars, len(entries))
    notes = engine_notes(right.index.model, theirs, second, bars)
    if random:
        notes.append(f'fed with random numbers (seed {seed}); --input feeds real ones')
    if broken := [row.reason for row in first.rows.values() if row.reason]:
        raise InferenceError(f'{left_path}: {broken[0]}')
    return Comparison(
        dict(kind='files', reference=str(left_path), file=str(right_path), inputs=findings.shapes(feeds)),
        entries,
        findings.differences_of(second, bars, findings.explain_by(found)),
        findings.outputs_of(right, entries),
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
        shape = shape_text(found.free[name].shape)
        position = index.producer(name)
        node = name if position is None else index.label(position)
        if not reason and wrong and kind == 'Constant':
            reason = 'is a constant in this file'
        figures = (finite(error), finite(error), 'born here' if wrong else 'equal', reason)
        entries.append(Entry(depth + len(entries), node, kind, '', name, shape, mate, 'structure', *figures))
    return entries
