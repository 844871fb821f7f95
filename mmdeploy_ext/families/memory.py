"""What a proof has to know of the memory of a family: the only place where its names are known.

Glossary: Q queries, K rows that a frame adds to the memory, P rows that become queries of the next frame.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec


@dataclasses.dataclass(frozen=True)
class MemorySpec:
    """What the memory of a model holds, and how the rows of a frame come to it.

    Rows are the best Q by score: engines that round differently may order equal scores differently. A proof
    tells such ties from errors by the places of the rows.

    Attributes:
        tensors: of a `StreamState` -> their tolerance in float32.
        outputs: of a graph that become these tensors; their tolerances count in less than float32.
        needed: outputs that every engine has to give; layers on the first axis, of which a graph may give the
            last one alone.
        per_query: outputs with the queries on the axis before the last.
        scores: the output of logits (layers, 1, Q, classes) by which rows are chosen; '' knows no ties.
        places: (memory tensor, output, columns): what rows have of their query's outputs, in m and m/s.
        topk: K.
        propagated: P.
    """

    tensors: Mapping[str, ColumnGroup] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    per_query: tuple[str, ...] = ()
    scores: str = ''
    places: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    topk: int = 0
    propagated: int = 0

    def judged_by(self, spec: GraphSpec) -> Self:
        """Return the memory with the tolerances of the outputs that become its tensors."""
        known = {tensor.name: tensor.column_groups[0] for tensor in spec.outputs}
        tensors = {name: known.get(self.outputs.get(name), group) for name, group in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)
