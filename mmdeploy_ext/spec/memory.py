"""A streaming model's memory: tensors, tolerances, choice of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmdeploy_ext.base.typed_json import JsonDataclass, optional
from mmdeploy_ext.spec.tensors import ColumnGroup

if TYPE_CHECKING:
    from typing import Self

    from mmdeploy_ext.spec.tensors import GraphSpec


@dataclasses.dataclass(frozen=True)
class InstanceRows(JsonDataclass):
    """Rows of a memory that each frame chooses anew among its Q instances, by a confidence.

    Attributes:
        tensors: tensors of the memory with these rows.
        place: tensor and output (1, Q, n) by which a row is found among the instances.
        per_query: outputs (1, Q, n) of the instances.
        confidence: output (1, Q) that chooses the rows.
        first_scores: PyTorch's output (1, Q) that orders instances, else NaN.
        ids: output of track ids (1, Q, -1 for none), tensors of the rows' ids and of the next id; () without.
    """

    tensors: tuple[str, ...]
    place: tuple[str, str]
    per_query: tuple[str, ...]
    confidence: str
    first_scores: str
    ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MemorySpec(JsonDataclass):
    """The tensors in a model's memory, and how frames add rows.

    Q queries, K new rows per frame, P rows that become the next frame's queries. Engines may order equal
    scores differently; `places` identify such ties.

    Attributes:
        tensors: tensor of `runtime.frames.StreamState` -> tolerance in float32.
        outputs: tensor -> graph output stored in it.
        needed: outputs of every engine, layers first.
        per_query: outputs with queries on the last axis but one.
        scores: output of logits (layers, 1, Q, classes) for the top K; '' if unused.
        places: (tensor, output, columns of the output with the tensor's columns).
        topk: K; 0 without `scores`.
        propagated: P; 0 without `scores`.
        instances: rows of each kind that is chosen anew; () if older rows stay.
        decided: outputs that depend on `StepResult.undecided`, with the results of `without_motion`.
    """

    tensors: Mapping[str, ColumnGroup] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    per_query: tuple[str, ...] = ()
    scores: str = ''
    places: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    topk: int = 0
    propagated: int = 0
    instances: tuple[InstanceRows, ...] = ()
    decided: tuple[str, ...] = optional(())

    def judged_by(self, spec: GraphSpec) -> Self:
        """The memory with a graph's output tolerances, below float32."""
        groups = {tensor.name: tensor.column_groups[0] for tensor in spec.outputs}
        tensors = {name: groups.get(self.outputs.get(name), group) for name, group in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)
