"""The parts of a LiDAR detector, whatever mmdet3d's class calls them; what goes through parts of a model."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Parts:
    """From points to raw outputs; `neck` may be None."""

    prefix: str
    voxel_layer: nn.Module
    voxel_encoder: nn.Module
    middle_encoder: nn.Module
    backbone: nn.Module
    neck: nn.Module | None
    head: nn.Module


def prefix_of(model: Mapping[str, Any]) -> str:
    """Return what the names of a config's parts begin with: 'pts_' beside cameras' parts, or nothing."""
    return 'pts_' if 'pts_voxel_encoder' in model else ''


def parts_of(model: nn.Module) -> Parts:
    """Return the parts of a `CenterPoint`, `MVXFasterRCNN` or `VoxelNet`."""
    prefix = 'pts_' if hasattr(model, 'pts_voxel_encoder') else ''
    names = ('voxel_layer', 'voxel_encoder', 'middle_encoder', 'backbone', 'neck', 'bbox_head')
    return Parts(prefix, *(getattr(model, prefix + name, None) for name in names))


class OfModel(nn.Module):
    """What runs parts of a detector, which keep the names that they have there, below `model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


Watch = Callable[[tuple[Tensor, ...], Any], dict[str, Any]]
"""Makes of the inputs and the output of a module what is kept."""


@contextlib.contextmanager
def watching(hooks: Mapping[nn.Module, Watch]) -> Iterator[dict[str, Any]]:
    """Keep what functions of modules' inputs and outputs return, while the body runs."""
    kept: dict[str, Any] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        kept.update(hooks[module](given, output))

    with contextlib.ExitStack() as stack:
        for module in hooks:
            stack.enter_context(module.register_forward_hook(keep))
        yield kept
