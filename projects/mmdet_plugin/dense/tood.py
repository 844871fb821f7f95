"""What TOOD's head of mmdet 2.28 computes in a way that no exporter follows, in its exported copy."""

from typing import Any

import torch
from mmdet.models.dense_heads import TOODHead

from mmdeploy_ext.exporting.fold import PREPARATIONS
from mmdeploy_ext.exporting.ops.deform_conv import CALLERS


def fix_sampled_sides(module: torch.nn.Module) -> None:
    """Give TOOD's head kernels of fixed shape: traced, its own have that of a tensor."""
    if isinstance(module, TOODHead):
        module.deform_sampling = _sample_sides


def _sample_sides(boxes: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Read each side of boxes (B, 4, h, w) at its own offset (B, 8, h, w), y before x, in cells."""
    from mmcv.ops import deform_conv2d

    sides = 4
    return deform_conv2d(boxes, offset, boxes.new_ones((sides, 1, 1, 1)), 1, 0, 1, sides, sides)


class RepeatedPriors:
    """The priors of a level, once for each image of a batch.

    The head joins them in a loop over the images, of which a trace keeps the batch of its example.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.repeats: Any = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['generator'], name)

    def single_level_grid_priors(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return (repeats * A, 4) xyxy."""
        return self.generator.single_level_grid_priors(*args, **kwargs).repeat(self.repeats, 1)

    def count(self, head: torch.nn.Module, inputs: tuple) -> None:
        """Look at the batch that a head is about to take: a hook before its `forward`."""
        batch = inputs[0][0].shape[0]
        self.repeats = batch // int(batch)


def repeat_priors(module: torch.nn.Module) -> None:
    """Let TOOD's head have priors for batches other than that of the trace."""
    if isinstance(module, TOODHead):
        module.prior_generator = RepeatedPriors(module.prior_generator)
        module.register_forward_pre_hook(module.prior_generator.count)


PREPARATIONS += [fix_sampled_sides, repeat_priors]
CALLERS.append(TOODHead)
