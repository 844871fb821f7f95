"""Modules that give the outputs of folded convolutions."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.sparse.ir import BatchNorm, Relu

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.sparse.ir import Node, SparseGraph


@dataclasses.dataclass(frozen=True)
class LayerSource:
    """Modules behind a convolution: path of its BatchNorm or '', and whether a ReLU alone follows."""

    norm: str = ''
    relu: bool = False


def layer_sources(traced: SparseGraph) -> dict[str, LayerSource]:
    """Module path of a convolution -> source of its folded output, of an unfolded graph."""
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
