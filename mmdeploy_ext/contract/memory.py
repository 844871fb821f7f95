"""The memory of a model of frames: its tensors, their tolerances, and the output by which rows are chosen.

A family describes it once; proofs and judgements of kits read it. Needs numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from mmdeploy_ext.contract.spec import ColumnGroup
from mmdeploy_ext.core.typed_json import JsonDataclass

if TYPE_CHECKING:
    from mmdeploy_ext.contract.spec import GraphSpec


@dataclasses.dataclass(frozen=True)
class MemorySpec(JsonDataclass):
    """The tensors in the memory of a model, and how the rows of a frame get into it.

    Glossary: Q queries, K rows that a frame adds to the memory, P rows that become queries of the next frame.

    With `scores` rows are the best K by score: engines that round differently may order equal scores
    differently. A proof tells such ties from errors by `places`, which show the query that a row was copied
    from.

    Attributes:
        tensors: name of each tensor of `runtime.frames.StreamState`, but that of the track ids of rows (see
            `ids`) -> its tolerance in float32; a tensor that is not here fails every comparison.
        outputs: name of such a tensor -> output of a graph that becomes it; a proof of a file in less than
            float32 takes the tolerance of the output, see `judged_by`.
        needed: outputs that every engine has to give; layers are on the first axis, and a graph may give the
            last layer alone.
        per_query: outputs with the queries on the axis before the last.
        scores: the output of logits (layers, 1, Q, classes) by which rows are chosen; '' if they are chosen
            by `confidence`, if none are chosen, or if K is not known.
        places: what rows copy from the outputs of their query: (name in `tensors`, name of an output, indices
            of those columns of the output that are all columns of the tensor, in its order). Neither is moved
            before the two are compared: the memory after a frame is in the coordinates of that frame.
        topk: K; 0 without `scores`.
        propagated: P; 0 without `scores`.
        confidence: the output of confidences (1, Q) by which all rows are chosen anew in every frame; '' for
            a memory that keeps older rows.
        first_scores: of a memory with a `confidence`, PyTorch's output (1, Q) of the scores by which a
            frame's own instances are put in order; NaN for those that it took over from the last frame.
        ids: of a memory with a `confidence`, the output of track ids (1, Q), -1 for none, the tensor of those
            of its rows, and that of the next id; () without a `confidence`.
    """

    tensors: Mapping[str, ColumnGroup] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    per_query: tuple[str, ...] = ()
    scores: str = ''
    places: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    topk: int = 0
    propagated: int = 0
    confidence: str = ''
    first_scores: str = ''
    ids: tuple[str, ...] = ()

    def judged_by(self, spec: GraphSpec) -> Self:
        """Return the memory with the tolerances of those outputs of a graph that become its tensors.

        `spec` is the contract of the graph. Callers ask for it if the precision of a file is not float32,
        which is not checked here. Tensors of which the graph has no output keep theirs. Such an output has
        one column group: of several the first is taken, and as the columns of the others are then in no
        group, every comparison of the tensor fails.
        """
        groups = {tensor.name: tensor.column_groups[0] for tensor in spec.outputs}
        tensors = {name: groups.get(self.outputs.get(name), group) for name, group in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)
