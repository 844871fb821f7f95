"""Random single faults in ONNX models, seeded: what a proof has to see, whatever they do to the numbers.

`mutants` draws from `KINDS` in turn. Faults that leave the graph what it was (`harmless`) are drawn too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx

import mutation_ends as outside
import mutation_kinds as kinds
import mutation_wiring as between
from mmdeploy_ext.graph.io import types
from mutation_metadata import NOTE, metadata
from mutation_sites import Draft, NoSite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS: dict[str, Callable[[Draft], tuple[str, str]]] = dict(
    operator=kinds.operator,
    attribute=kinds.attribute,
    value=kinds.value,
    ulp=kinds.ulp,
    wiring=between.wiring,
    insertion=between.insertion,
    deletion=between.deletion,
    condition=between.condition,
    ends=outside.ends,
    metadata=metadata,
    harmless=outside.harmless,
)
"""Kind of fault -> what puts one into a draft; it returns where, and what. `harmless` are no faults."""
TRIES = 40
"""Draws of one kind in a row that onnx refuses or that change nothing, until the model has no more of it."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A model with one fault.

    Attributes:
        kind: of `KINDS`.
        where: node, tensor, input, output or key.
        detail: what was changed.
        model: the faulty copy.
        harmless: by construction it computes the same and says the same of itself.
    """

    kind: str
    where: str
    detail: str
    model: onnx.ModelProto
    harmless: bool = False


def mutants(
    model: onnx.ModelProto, seed: int, count: int, only: tuple[str, ...] = tuple(KINDS)
) -> Iterator[Mutant]:
    """Yield models with one fault each, no two of the same bytes.

    Args:
        model: stays as it is; a model that onnx.checker refuses (libspconv) may have mutants that it refuses.
        seed: the same one gives the same bytes.
        count: how many, the kinds in turn; fewer where the model has no more.
        only: kinds to draw from.
    """
    random = np.random.default_rng(seed)
    known, waiting = types.infer(model), list(only)
    strict = is_valid(model)
    seen = {_hash(model)}
    while count > 0 and waiting:
        kind = waiting.pop(0)
        found = next(
            filter(None, (_drawn(kind, model, random, known, strict, seen) for _ in range(TRIES))), None
        )
        if found is not None:
            waiting.append(kind)
            count -= 1
            yield found


def _drawn(
    kind: str,
    model: onnx.ModelProto,
    random: np.random.Generator,
    known: dict[str, onnx.TypeProto],
    strict: bool,
    seen: set[str],
) -> Mutant | None:
    draft = Draft(model, random, known)
    try:
        where, detail = KINDS[kind](draft)
    except NoSite:
        return None
    key = _hash(draft.model)
    if key in seen or (strict and not is_valid(draft.model)):
        return None
    seen.add(key)
    note = kind == 'metadata' and detail.startswith(NOTE)
    return Mutant(kind, where, detail, draft.model, kind == 'harmless' or note)


def is_valid(model: onnx.ModelProto) -> bool:
    """Return whether onnx.checker takes a model."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError):
        return False
    return True


def _hash(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
