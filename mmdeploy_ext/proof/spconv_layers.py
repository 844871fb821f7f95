"""What every convolution of the unpatched spconv model gives, watched by hooks; needs torch and spconv."""

from __future__ import annotations

import contextlib
import dataclasses
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
        convolution: path of the convolution: its sites.
        norm: path of the BatchNorm behind it, '' when there is none: its values.
        relu: whether a ReLU alone follows.
    """

    convolution: str
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
    """Return module path of a convolution -> where its folded output stands.

    Args:
        traced: before folding.
    """
    users: dict[str, list[Node]] = {}
    for node in traced.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    sources = {}
    for node in traced.convolutions():
        norm, behind = '', users.get(node.output, [])
        while len(behind) == 1 and isinstance(behind[0], BatchNorm):
            norm, behind = behind[0].module, users.get(behind[0].output, [])
        sources[node.module] = LayerSource(
            node.module, norm, len(behind) == 1 and isinstance(behind[0], Relu)
        )
    return sources


@contextlib.contextmanager
def watched(encoder: torch.nn.Module, sources: dict[str, LayerSource]) -> Iterator[dict[str, LayerOutput]]:
    """Watch one forward pass; the dict fills while it runs: convolution path -> what it gave.

    Nothing of the module changes, and the hooks are gone afterwards. Values are complete (ReLUs applied) once
    the body has ended.
    """
    modules = dict(encoder.named_modules())
    found: dict[str, LayerOutput] = {}
    handles = []

    def on_convolution(path: str) -> Any:
        def hook(_module: object, _args: object, result: Any) -> None:
            # values are copied: an in-place ReLU may follow
            coordinates = result.indices.detach().cpu().numpy().astype(np.int32)
            found[path] = LayerOutput(coordinates, _copy(result.features))

        return hook

    def on_norm(path: str) -> Any:
        def hook(_module: object, _args: object, result: torch.Tensor) -> None:
            found[path].features = _copy(result)

        return hook

    try:
        for path, source in sources.items():
            handles.append(modules[source.convolution].register_forward_hook(on_convolution(path)))
            if source.norm:
                handles.append(modules[source.norm].register_forward_hook(on_norm(path)))
        yield found
        for path, output in found.items():
            if sources[path].relu:
                np.maximum(output.features, 0, out=output.features)
    finally:
        for handle in handles:
            handle.remove()


def _copy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy().copy()
