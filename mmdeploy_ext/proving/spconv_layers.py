"""What every convolution of the unpatched spconv model gives, watched by hooks; needs torch and spconv."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.sparse.ir import BatchNorm, Relu

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from mmdeploy_ext.sparse.ir import Node, SparseGraph


@dataclasses.dataclass(frozen=True)
class LayerSource:
    """Where the output of a folded convolution stands in the module.

    Attributes:
        norm: path of the BatchNorm behind the convolution, '' when there is none: its values.
        relu: whether a ReLU alone follows.
    """

    norm: str = ''
    relu: bool = False


@dataclasses.dataclass
class LayerOutput:
    """What one folded convolution gave.

    Attributes:
        coordinates: (M, 4) int32 in the module's order.
        features: (M, C) float32.
    """

    coordinates: np.ndarray
    features: np.ndarray


def layer_sources(traced: SparseGraph) -> dict[str, LayerSource]:
    """Return module path of a convolution -> where its folded output stands, of a graph before folding."""
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


@contextlib.contextmanager
def watched(encoder: torch.nn.Module, sources: dict[str, LayerSource]) -> Iterator[dict[str, LayerOutput]]:
    """Watch one forward pass; the dict fills while it runs: convolution path -> what it gave.

    Nothing of the module changes, and the hooks are gone afterwards. Values are complete (ReLUs applied) once
    the body has ended.
    """
    found: dict[str, LayerOutput] = {}

    def on_convolution(path: str, _module: object, _args: object, result: Any) -> None:
        coordinates = result.indices.detach().cpu().numpy().astype(np.int32)
        found[path] = LayerOutput(coordinates, _copy(result.features))

    def on_norm(path: str, _module: object, _args: object, result: torch.Tensor) -> None:
        found[path].features = _copy(result)

    with contextlib.ExitStack() as hooks:
        for path, source in sources.items():
            for name, hook in ((path, on_convolution), (source.norm, on_norm)):
                if name:
                    module = encoder.get_submodule(name)
                    hooks.enter_context(module.register_forward_hook(functools.partial(hook, path)))
        yield found
        for path, output in found.items():
            if sources[path].relu:
                np.maximum(output.features, 0, out=output.features)


def _copy(tensor: torch.Tensor) -> np.ndarray:
    """Return the values, copied: an in-place ReLU may follow."""
    return tensor.detach().cpu().float().numpy().copy()
