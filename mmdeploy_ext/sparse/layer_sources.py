"""The modules whose outputs the folded convolutions of a sparse graph have."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.sparse.ir import BatchNorm, Relu

if TYPE_CHECKING:
    from mmdeploy_ext.sparse.ir import Node, SparseGraph


@dataclasses.dataclass(frozen=True)
class LayerSource:
    """The modules that give the output of a folded convolution.

    Attributes:
        norm: path of the BatchNorm behind the convolution, whose values the output has; '' if there is none.
        relu: whether a ReLU alone follows.
    """

    norm: str = ''
    relu: bool = False


def layer_sources(traced: SparseGraph) -> dict[str, LayerSource]:
    """Return module path of a convolution -> source of its folded output, of a graph before folding."""
    users: dict[str, list[Node]] = collections.defaultdict(list)
    for node in traced.nodes:
        for name in node.inputs:
            users[name].append(node)
    sources = {}
    for node in traced.convolutions():
        norm, behind = '', users[node.output]
        while len(behind) == 1 and isinstance(behind[0], BatchNorm):
            norm, behind = behind[0].module, users[behind[0].output]
        sources[node.module] = LayerSource(norm, len(behind) == 1 and isinstance(behind[0], Relu))
    return sources
