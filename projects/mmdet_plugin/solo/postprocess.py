"""What the `full` form adds to the networks: which soft masks a head has."""

import torch
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.mask import MaskPostprocess, mask_config
from mmdeploy_ext.exporting.postprocess.soft_masks import DynamicMasks, LevelMasks, ProductMasks, SoftMasks


def mask_stride(head: nn.Module) -> int:
    """Return pixels of the input per pixel of the soft masks."""
    return int(getattr(head, 'mask_stride', 4))


class FullForm(nn.Module):
    """Instances from the tensors of a network."""

    def __init__(self, head: nn.Module, cap: int) -> None:
        super().__init__()
        self.num_grids = [int(grid) for grid in head.num_grids]
        self.postprocess = MaskPostprocess(
            mask_config(head.test_cfg),
            self.num_grids,
            [int(stride) for stride in head.strides],
            mask_stride(head),
            cap,
        )

    def soft_masks(self, parts: tuple[torch.Tensor, ...]) -> SoftMasks:
        """Return the soft masks that the network's tensors, without the scores, stand for."""
        raise NotImplementedError

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, cate_pred: torch.Tensor, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Post-process; see `MaskPostprocess.forward`."""
        results = self.postprocess(cate_pred, self.soft_masks(parts), img_shape, ori_shape)
        names = ('masks', 'scores', 'labels', 'candidates')
        return tuple(tap(name, tensor) for name, tensor in zip(names, results, strict=False))


class SoloV2Full(FullForm):
    """`SOLOV2Head`: kernels (B, S, E) and mask features (B, E, H4, W4)."""

    def soft_masks(self, parts: tuple[torch.Tensor, ...]) -> SoftMasks:
        """See `FullForm.soft_masks`."""
        return DynamicMasks(*parts)


class DecoupledFull(FullForm):
    """Decoupled heads: x masks and y masks (B, G, H4, W4)."""

    def soft_masks(self, parts: tuple[torch.Tensor, ...]) -> SoftMasks:
        """See `FullForm.soft_masks`."""
        return ProductMasks(*parts, self.num_grids)


class SoloFull(FullForm):
    """`SOLOHead`: what its mask convolutions take, per level (B, D, 2h, 2w)."""

    def __init__(self, head: nn.Module, cap: int) -> None:
        """Keep the mask convolutions, whose rows belong to the cells."""
        super().__init__(head, cap)
        self.convs = head.conv_mask_list

    def soft_masks(self, parts: tuple[torch.Tensor, ...]) -> SoftMasks:
        """See `FullForm.soft_masks`."""
        return LevelMasks(
            parts,
            [conv.weight.flatten(1) for conv in self.convs],
            [conv.bias for conv in self.convs],
            fixed=self.postprocess.cap > 0,
        )


POSTPROCESS = {
    'SOLOHead': SoloFull,
    'DecoupledSOLOHead': DecoupledFull,
    'DecoupledSOLOLightHead': DecoupledFull,
    'SOLOV2Head': SoloV2Full,
}
"""mmdet head -> what finishes its network."""
