"""What level 1 says of the graph of one file, as plain data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.graph.same import Difference

EDITED = 'edited graph'
NODE_KINDS = ('node', 'attribute', 'initializer', 'wiring')
"""Kinds of differences that are at a node."""
SHOWN = 3
"""Differences that one line lists; the JSON file has them all."""


@dataclasses.dataclass(frozen=True)
class GraphResult:
    """What level 1 says of the graph of one file.

    Attributes:
        name: of the graph, '' where the model is one file.
        nodes: of the main graph, constants not counted.
        equal: it is the graph of a fresh export, so that what holds for that one holds for the file.
        differences: where it is not.
        by_inputs: why inputs alone decide, e.g. 'edited graph'; '' where the graph does.
        note: what the comparison allowed, of files of older graph rules.
        error: why there is no fresh export to compare with.
    """

    name: str
    nodes: int
    equal: bool
    differences: tuple[Difference, ...] = ()
    by_inputs: str = ''
    note: str = ''
    error: str = ''

    @property
    def passed(self) -> bool:
        """Whether the graph is the same, or inputs decide."""
        return self.equal or bool(self.by_inputs)

    @property
    def text(self) -> str:
        """What the verdict says first."""
        name = f'{self.name}: ' if self.name else ''
        if self.equal:
            found = f'equal to a fresh export ({self.nodes:,} nodes)'
        elif self.by_inputs == EDITED:
            found = f'not compared, inputs alone decide ({self.by_inputs}, {self.nodes:,} nodes)'
        elif self.by_inputs:
            found = f'the network equals a fresh export, inputs alone decide the rest ({self.by_inputs})'
        elif self.error:
            found = f'no fresh export to compare with: {self.error}'
        else:
            found = _differing_text(self.differences)
        return f'{name}{found}{f"; {self.note}" if self.note else ""}'


def _differing_text(differences: Sequence[Difference]) -> str:
    count = len({entry.where for entry in differences}) + sum(entry.more for entry in differences)
    places = 'place differs' if count == 1 else 'places differ'
    if all(entry.kind in NODE_KINDS for entry in differences):
        places = 'node differs' if count == 1 else 'nodes differ'
    shown = '; '.join(entry.text for entry in differences[:SHOWN])
    more = f'; and {len(differences) - SHOWN} more' if len(differences) > SHOWN else ''
    return f'{count} {places} from a fresh export: {shown}{more}'
