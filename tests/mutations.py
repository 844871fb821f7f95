"""Random single faults in exported files, seeded: what a proof has to see, whatever they do to the numbers.

A mutant is one changed file of an export, or several of a folder that changed places. `Draws` takes kinds in
turn, so that all are there; `mutants` draws of one graph. Faults that leave a graph what it was (`harmless`)
can be drawn, too: a proof has to take them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

import mutation_bodies as inside
import mutation_ends as outside
import mutation_folders as folders
import mutation_kinds as kinds
import mutation_metadata as facts
import mutation_storage as storage
import mutation_wiring as between
from mmdeploy_ext.graph.io import types
from mutation_sites import Draft, NoSite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

KINDS: dict[str, Callable[[Draft], tuple[str, str]]] = dict(
    operator=kinds.operator,
    attribute=kinds.attribute,
    value=kinds.value,
    ulp=kinds.ulp,
    exchange=kinds.exchange,
    wiring=between.wiring,
    insertion=between.insertion,
    deletion=between.deletion,
    condition=between.condition,
    body=inside.body,
    function=inside.function,
    ends=outside.ends,
    axes=outside.axes,
    default=outside.default,
    opset=outside.opset,
    shape=storage.shape,
    storage=storage.stored,
    type=storage.other_type,
    metadata=facts.metadata,
    keys=facts.keys,
    edits=facts.edits,
    harmless=outside.harmless,
)
"""Kind of fault in a graph -> what puts one into a draft; it returns the place, and what was changed."""
FOLDER_KINDS: dict[str, Callable[[folders.FolderDraft], tuple[str, str]]] = dict(
    swap=folders.swap, foreign=folders.foreign, text=folders.text, text_keys=folders.text_keys
)
"""Kind of fault of a folder -> what puts one into a copy of its files."""
FAULTS = tuple(kind for kind in (*KINDS, *FOLDER_KINDS) if kind != 'harmless')
TRIES = 40
"""Draws of one kind in a row that onnx refuses or that change nothing, until the files have no more of it."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Files with one fault.

    Attributes:
        kind: of `KINDS` or `FOLDER_KINDS`.
        where: node, tensor, input, output, key or file.
        detail: what was changed.
        model: the faulty graph; None of a fault of a folder.
        harmless: by construction it computes the same and says the same of itself.
        changes: name of a file of the export -> its content now, None where it is gone.
        source: number of the export in `Draws`.
    """

    kind: str
    where: str
    detail: str
    model: onnx.ModelProto | None = None
    harmless: bool = False
    changes: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    source: int = 0

    @property
    def digest(self) -> str:
        """Hash of what was changed."""
        parts = (f'{name} {_sha256(content or b"")}' for name, content in sorted(self.changes.items()))
        return _sha256(' '.join(parts).encode())


class Export:
    """The files of one export, read once.

    Attributes:
        files: name -> content.
        models: name -> graph, of the files in .onnx.
        types: name of a file -> types of its tensors.
        strict: names of the graphs that onnx.checker takes; those of libspconv it does not.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(sorted(files.items()))
        self.models = {
            name: onnx.load_model_from_string(content)
            for name, content in self.files.items()
            if name.endswith('.onnx')
        }
        self.types = {name: types.infer(model) for name, model in self.models.items()}
        self.strict = {name for name, model in self.models.items() if is_valid(model)}

    @classmethod
    def read(cls, path: Path) -> Export:
        """Read a file, or all files of a folder."""
        paths = sorted(path.iterdir()) if path.is_dir() else [path]
        return cls({entry.name: entry.read_bytes() for entry in paths})

    def draw(self, kind: str, random: np.random.Generator, seen: set[str]) -> Mutant | None:
        """Return a mutant of a kind, None where the draw gives none; `seen` are digests of others."""
        try:
            mutant = self._of_folder(kind, random) if kind in FOLDER_KINDS else self._of_graph(kind, random)
        except NoSite:
            return None
        if mutant is None or mutant.digest in seen:
            return None
        seen.add(mutant.digest)
        return mutant

    def _of_folder(self, kind: str, random: np.random.Generator) -> Mutant | None:
        draft = folders.FolderDraft(self.files, random)
        where, detail = FOLDER_KINDS[kind](draft)
        changes = {name: draft.files.get(name) for name in {*self.files, *draft.files}}
        changes = {name: new for name, new in changes.items() if new != self.files.get(name)}
        return Mutant(kind, where, detail, changes=changes) if changes else None

    def _of_graph(self, kind: str, random: np.random.Generator) -> Mutant | None:
        names = sorted(self.models)
        name = names[random.integers(len(names))]
        draft = Draft(self.models[name], random, self.types[name])
        where, detail = KINDS[kind](draft)
        content = draft.model.SerializeToString(deterministic=True)
        original = self.models[name].SerializeToString(deterministic=True)
        external = bool(draft.beside)
        if content == original or (name in self.strict and not external and not is_valid(draft.model)):
            return None
        note = kind == 'metadata' and detail.startswith(facts.NOTE)
        changes = {name: content, **draft.beside}
        title = f'{name}: {where}' if len(names) > 1 else where
        return Mutant(kind, title, detail, draft.model, kind == 'harmless' or note, changes)


class Draws:
    """Draws mutants of one or several exports: kinds and exports in turn, at most so many of a kind.

    Attributes:
        counts: kind -> how many of it were drawn, without those that were given back.
    """

    def __init__(self, exports: Sequence[Export], seed: int, most: int = 10) -> None:
        self.exports, self.most = exports, most
        self.random = np.random.default_rng(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.waiting = list(FAULTS)
        self.seen: set[str] = set()
        self.turn = 0

    def next(self) -> Mutant | None:
        """Return the next mutant; None where the exports have no more."""
        while self.waiting:
            kind = self.waiting.pop(0)
            if self.counts[kind] >= self.most:
                continue
            mutant = self._drawn(kind)
            if mutant is not None:
                self.waiting.append(kind)
                self.counts[kind] += 1
                return mutant
        return None

    def give_back(self, mutant: Mutant) -> None:
        """Let another one be drawn instead of a mutant."""
        self.counts[mutant.kind] -= 1

    def _drawn(self, kind: str) -> Mutant | None:
        for _ in range(TRIES):
            source = self.turn % len(self.exports)
            self.turn += 1
            mutant = self.exports[source].draw(kind, self.random, self.seen)
            if mutant is not None and not mutant.harmless:
                return dataclasses.replace(mutant, source=source)
        return None


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
    export = Export({'m.onnx': model.SerializeToString(deterministic=True)})
    random, waiting, seen = np.random.default_rng(seed), list(only), set()
    while count > 0 and waiting:
        kind = waiting.pop(0)
        draws = (export.draw(kind, random, seen) for _ in range(TRIES))
        mutant = next(filter(None, draws), None)
        if mutant is not None:
            waiting.append(kind)
            count -= 1
            yield mutant


def is_valid(model: onnx.ModelProto) -> bool:
    """Return whether onnx.checker takes a model."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError):
        return False
    return True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
