"""Faults of a folder of files: files that changed places or are of elsewhere, and texts beside the graphs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mutation_kinds import ulp
from mutation_sites import Draft, NoSite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NUMBER = re.compile(r'-?\d+(?:\.\d+)?')


class FolderDraft:
    """A copy of the files of an export that is about to get one fault.

    Attributes:
        files: name -> content, to be changed in place.
        random: all choices come from it.
    """

    def __init__(self, files: Mapping[str, bytes], random: np.random.Generator) -> None:
        self.files, self.random = dict(files), random
        self.graphs = [name for name in files if name.endswith('.onnx')]
        self.texts = [name for name in files if not name.endswith('.onnx')]

    def pick(self, values: Iterable) -> object:
        """Return one of some values; NoSite: there is none."""
        values = list(values)
        if not values:
            raise NoSite
        return values[self.random.integers(len(values))]

    def two_graphs(self) -> tuple[str, str]:
        """Return the names of two graphs."""
        if len(self.graphs) < 2:
            raise NoSite
        first, second = self.random.permutation(len(self.graphs))[:2]
        return self.graphs[first], self.graphs[second]


def swap(draft: FolderDraft) -> tuple[str, str]:
    """Let files have each other's names, or one be a copy of another, or be gone."""
    return draft.pick((_swapped, _copied, _gone, _swapped_graphs))(draft)


def _swapped(draft: FolderDraft) -> tuple[str, str]:
    first, second = draft.two_graphs()
    draft.files[first], draft.files[second] = draft.files[second], draft.files[first]
    return f'{first}, {second}', 'names exchanged'


def _copied(draft: FolderDraft) -> tuple[str, str]:
    first, second = draft.two_graphs()
    draft.files[first] = draft.files[second]
    return first, f'is a copy of {second}'


def _gone(draft: FolderDraft) -> tuple[str, str]:
    name = draft.pick(draft.files)
    if len(draft.files) < 2:
        raise NoSite
    del draft.files[name]
    return name, 'is not there'


def _swapped_graphs(draft: FolderDraft) -> tuple[str, str]:
    """Exchange the graphs of two files; each keeps its metadata."""
    first, second = draft.two_graphs()
    one, two = (onnx.load_model_from_string(draft.files[name]) for name in (first, second))
    graph = onnx.GraphProto()
    graph.CopyFrom(one.graph)
    one.graph.CopyFrom(two.graph), two.graph.CopyFrom(graph)
    draft.files[first], draft.files[second] = one.SerializeToString(), two.SerializeToString()
    return f'{first}, {second}', 'graphs exchanged, each with its metadata'


def foreign(draft: FolderDraft) -> tuple[str, str]:
    """Let a file be of another export: weights that differ by a unit, or one more file."""
    return draft.pick((_other_weights, _one_more))(draft)


def _other_weights(draft: FolderDraft) -> tuple[str, str]:
    """Change a weight of every graph: they fit together, and are of another checkpoint."""
    places = []
    if len(draft.graphs) < 2:
        raise NoSite
    for name in draft.graphs:
        inner = Draft(onnx.load_model_from_string(draft.files[name]), draft.random, {})
        place, detail = ulp(inner)
        draft.files[name] = inner.model.SerializeToString()
        places.append(f'{place} {detail}')
    return ', '.join(draft.graphs), '; '.join(places)


def _one_more(draft: FolderDraft) -> tuple[str, str]:
    """Put one of the graphs into the folder once more, with another weight."""
    if len(draft.graphs) < 2:
        raise NoSite
    name = draft.pick(draft.graphs)
    inner = Draft(onnx.load_model_from_string(draft.files[name]), draft.random, {})
    place, detail = ulp(inner)
    new = f'{draft.pick(("a", "zz"))}_{name}'
    draft.files[new] = inner.model.SerializeToString()
    return new, f'a copy of {name}: {place} {detail}'


def text(draft: FolderDraft) -> tuple[str, str]:
    """Change one value of a text beside the graphs."""
    name = draft.pick(draft.texts)
    lines = draft.files[name].decode().splitlines(keepends=True)
    place = draft.pick(index for index, line in enumerate(lines) if _values(line))
    start, end = draft.pick(_values(lines[place]))
    old = lines[place][start:end]
    new = _other_word(draft, old)
    lines[place] = lines[place][:start] + new + lines[place][end:]
    draft.files[name] = ''.join(lines).encode()
    return f'{name}, line {place + 1}', f'{old} -> {new}'


def _values(line: str) -> list[tuple[int, int]]:
    """Return the places of values in a line of YAML: behind a colon, in a list or after a dash."""
    begin = line.find(':') + 1 if ':' in line else line.find('-') + 1
    return [(begin + found.start(), begin + found.end()) for found in re.finditer(r'[\w.+-]+', line[begin:])]


def _other_word(draft: FolderDraft, old: str) -> str:
    if old in ('true', 'false'):
        return 'false' if old == 'true' else 'true'
    if NUMBER.fullmatch(old):
        if '.' in old:
            return repr(float(old) * float(draft.pick((1.01, 2.0, -1.0))) if float(old) else 0.5)
        return str(int(old) + int(draft.pick((-1, 1))))
    return old[::-1] if old != old[::-1] else f'{old}x'


def text_keys(draft: FolderDraft) -> tuple[str, str]:
    """Remove, rename or repeat a line of a text beside the graphs, or exchange two."""
    name = draft.pick(draft.texts)
    lines = draft.files[name].decode().splitlines(keepends=True)
    place = draft.pick(index for index, line in enumerate(lines) if line.strip())
    detail = draft.pick(('removed', 'twice', 'exchanged with the next', 'renamed'))
    if detail == 'removed':
        del lines[place]
    elif detail == 'twice':
        lines.insert(place, lines[place])
    elif detail == 'renamed':
        lines[place] = re.sub(r'[a-z]', 'q', lines[place], count=1)
    elif place + 1 < len(lines):
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    draft.files[name] = ''.join(lines).encode()
    return f'{name}, line {place + 1}', detail
