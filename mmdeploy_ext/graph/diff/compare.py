"""Compare two files: their structure, and their tensors on the same inputs. Needs no torch.

The graph on trial runs node by node, and each of its tensors is looked at twice: its free value is what the
graph computes from its inputs; and an error is born in a node whose result is wrong although the node was fed
with the reference's values.
"""

import dataclasses
from collections.abc import Mapping

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
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], walk: Walk, bars: Bars
) -> list[str]:
    """Run the model with all optimisations, and return how its outputs differ from the node-by-node run.

    Args:
        model: the graph on trial.
        feeds: input -> array, by its names.
        walk: the node-by-node run of the model on these feeds.
        bars: an error of an output up to `bars.free` is no difference.

    Returns:
        A sentence for each output that differs, or the error if ONNX Runtime cannot run the model.
    """
    try:
        outputs = run.run(model, feeds, optimization='all')
    except Mm2OnnxError as error:
        return [f'ONNX Runtime cannot run the whole model: {error}']
    errors = {name: compare(array, walk.free.get(name))[0] or 0.0 for name, array in outputs.items()}
    return [
        f'output {name}: ONNX Runtime with all optimisations differs from the same nodes run one by one '
        f'(relative error {error:.2e}): ties, or an optimisation of the engine'
        for name, error in errors.items()
        if error > bars.free
    ]


def diff_files(
    reference_path: str,
    path: str,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    rtol: float | None = None,
) -> Comparison:
    """Compare two files, of which the first is the reference: structure, and tensors on the same inputs.

    Args:
        reference_path: the reference.
        path: the file on trial.
        feeds: input -> array, by the reference's names; None takes random ones, from `seed`.
        seed: seed of the random inputs.
        rtol: error of one node, relative to the largest value of a tensor, above which the node is at fault;
            None takes that of `Bars`, or of `HALF` if a file computes in float16.

    Raises:
        UsageError: the inputs of the two cannot be paired.
        InferenceError: a node of the reference fails.
    """
    constants, runner = Constants(), NodeRunner()
    reference, candidate = (Program(files.load(file), constants) for file in (reference_path, path))
    bars = (findings.HALF if reference.is_half() or candidate.is_half() else Bars()).at(rtol)
    pairs = align(candidate, reference)
    structure = changes(candidate, reference, pairs)
    is_random = feeds is None
    feeds = dict(random_feeds(reference.index.model, seed) if feeds is None else feeds)
    check_feeds(reference.index, feeds)
    if missing := [name for name in candidate.index.inputs if pairs.tensors.get(name) not in feeds]:
        raise UsageError(
            f'{path}: its inputs {", ".join(missing)} have no counterpart in {reference_path}, which has '
            f'{", ".join(reference.index.inputs)}'
        )
    reference_walk = walk(reference, feeds, references={}, runner=runner)
    references = {
        name: ReferenceTensor(reference_walk.free[mate], mate, how='structure')
        for name, mate in pairs.tensors.items()
        if mate in reference_walk.free and candidate.index.producer(name) is not None
    }
    candidate_feeds = {
        name: candidate.fitting(name, feeds[pairs.tensors[name]]) for name in candidate.index.inputs
    }
    candidate_feeds.update((name, value) for name, value in feeds.items() if name in candidate.defaults)
    candidate_walk = walk(candidate, candidate_feeds, references, runner)
    entries = findings.entries_of(candidate_walk, bars)
    entries += _constant_outputs(candidate_walk, pairs.tensors, reference_walk, bars, len(entries))
    notes = engine_notes(candidate.index.model, candidate_feeds, candidate_walk, bars)
    if is_random:
        notes.append(f'fed with random numbers (seed {seed}); --input feeds real ones')
    if failures := [row.reason for row in reference_walk.rows.values() if row.reason]:
        raise InferenceError(f'{reference_path}: {failures[0]}')
    reference_outputs = reference.index.outputs
    mates = {name: pairs.tensors.get(name) for name in candidate.index.outputs}
    return Comparison(
        dict(kind='files', reference=str(reference_path), file=str(path), inputs=findings.shape_texts(feeds)),
        entries,
        findings.differences_of(candidate_walk, bars, findings.explain_by(structure)),
        findings.outputs_of(candidate, entries),
        [dataclasses.asdict(change) for change in structure],
        notes,
        bars,
        missing=[name for name in reference_outputs if name not in mates.values()],
        additional=[name for name, mate in mates.items() if mate not in reference_outputs],
        renamed={mate: name for name, mate in mates.items() if mate in reference_outputs and mate != name},
    )


def _constant_outputs(
    candidate_walk: Walk, mates: Mapping[str, str], reference_walk: Walk, bars: Bars, depth: int
) -> list[Entry]:
    """Return entries of outputs that no step of the walk makes: constants, and inputs that are outputs."""
    entries, index, values = [], candidate_walk.program.index, candidate_walk.free
    for name in index.outputs:
        mate = mates.get(name, '')
        if name in candidate_walk.rows or name not in values or mate not in reference_walk.free:
            continue
        error, reason = compare(values[name], reference_walk.free[mate])
        is_wrong = error is None or error > bars.free
        is_input = name in index.inputs
        position = index.producer(name)
        if not reason and is_wrong and not is_input:
            reason = 'is a constant in this file'
        entry = Entry(
            depth=depth + len(entries),
            node=name if position is None else index.label(position),
            op_type='input' if is_input else 'Constant',
            module='',
            tensor=name,
            shape=shape_text(values[name].shape),
            paired=mate,
            how='structure',
            error=finite(error),
            born=finite(error),
            state='born here' if is_wrong else 'equal',
            reason=reason,
        )
        entries.append(entry)
    return entries
