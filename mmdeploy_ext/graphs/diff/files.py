"""Compare two files: their structure, and their tensors on the same inputs. Needs no torch."""

from collections.abc import Mapping

import numpy as np
import onnx

from mmdeploy_ext.base.errors import InferenceError, Mm2OnnxError, UsageError
from mmdeploy_ext.graphs import run, signature
from mmdeploy_ext.graphs.diff import findings
from mmdeploy_ext.graphs.diff.findings import Comparison, DiffBars
from mmdeploy_ext.graphs.diff.program import Constants, NodeRunner, Program
from mmdeploy_ext.graphs.diff.structure import (
    EQUAL,
    UNKNOWN,
    Change,
    ReferenceTensor,
    Walk,
    align,
    changes,
    compare,
    walk,
)
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.run import check_feeds, random_feeds


def engine_notes(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], walk: Walk, bars: DiffBars
) -> list[str]:
    """Return how outputs of the fully optimised model differ from the node-by-node run `walk`."""
    try:
        outputs = run.run(model, feeds, optimization='all')
    except Mm2OnnxError as error:
        return [f'ONNX Runtime cannot run the whole model: {error}']
    errors = {name: compare(array, walk.free.get(name))[0] or 0.0 for name, array in outputs.items()}
    return [
        f'output {name}: ONNX Runtime with all optimisations differs from the same nodes when each runs '
        f'alone (relative error {error:.2e}): ties, or an optimisation of the engine'
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
    """Compare the structure of two files, and their tensors on the same inputs.

    - `feeds`: input -> array, by the reference's names; None: random, from `seed`.
    - `rtol`: error of one node above which it is at fault, see `DiffBars.at`; None: bars by precision.
    """
    constants, runner = Constants(), NodeRunner()
    reference, candidate = (Program(files.load(file), constants) for file in (reference_path, path))
    bars = (findings.HALF_DIFF if reference.is_half() or candidate.is_half() else DiffBars()).at(rtol)
    pairs = align(candidate, reference)
    structure = changes(candidate, reference, pairs)
    if all(change.kind in signature.IGNORED_CHANGES for change in structure):
        unexplained = signature.differences(candidate.index.model, reference.index.model)
        structure += [Change('inside', difference.where, difference.detail) for difference in unexplained]
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
        if mate in reference_walk.free
        and (candidate.index.producer(name) is not None or name in candidate.index.outputs)
    }
    mates = {name: pairs.tensors.get(name, name) for name in (*candidate.index.inputs, *candidate.defaults)}
    candidate_feeds = {
        name: candidate.fitting(name, feeds[mate]) for name, mate in mates.items() if mate in feeds
    }
    candidate_walk = walk(candidate, candidate_feeds, references, runner)
    if failures := [row.reason for row in reference_walk.rows.values() if row.reason]:
        raise InferenceError(f'{reference_path}: {failures[0]}')
    shapes = findings.shape_texts(feeds)
    subject = dict(kind='files', reference=str(reference_path), file=str(path), inputs=shapes)
    comparison = findings.comparison_of(candidate_walk, bars, structure, subject)
    comparison.notes = engine_notes(candidate.index.model, candidate_feeds, candidate_walk, bars)
    if is_random:
        comparison.notes.append(f'inputs are random numbers (seed {seed}); pass real ones with --input')
    reference_outputs = reference.index.outputs
    output_mates = {name: pairs.tensors.get(name) for name in candidate.index.outputs}
    comparison.missing = [name for name in reference_outputs if name not in output_mates.values()]
    comparison.additional = [name for name, mate in output_mates.items() if mate not in reference_outputs]
    comparison.renamed = {
        mate: name for name, mate in output_mates.items() if mate in reference_outputs and mate != name
    }
    for entry in comparison.outputs:
        array = reference_walk.free[entry.paired] if entry.state == EQUAL else np.ones(1)
        if not array.size and comparison.restructured:
            entry.state, entry.reason = UNKNOWN, 'is empty, so it says nothing about another structure'
        elif array.size and array.dtype.kind == 'f' and not np.isfinite(array).any():
            entry.state, entry.reason = UNKNOWN, 'has no finite value, so it says nothing'
    return comparison
