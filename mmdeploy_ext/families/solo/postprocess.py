"""What the `full` form adds to the networks: which soft masks a head has."""

import torch
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.mask import MaskPostprocess, mask_config
from mmdeploy_ext.exporting.postprocess.soft_masks import DynamicMasks, LevelMasks, ProductMasks, SoftMasks


def mask_stride(head: nn.Module) -> int:
    """Return pixels of the input per pixel of the soft masks."""
    return int(getattr(head, 'mask_stride', 4))


def _level_masks(form: 'FullForm', *parts: torch.Tensor) -> SoftMasks:
    """Return those of `SOLOHead`, of what its mask convolutions take, per level (B, D, 2h, 2w)."""
    weights = [conv.weight.flatten(1) for conv in form.convs]  # a row for each cell
    return LevelMasks(parts, weights, [conv.bias for conv in form.convs], fixed=form.postprocess.cap > 0)


def _product_masks(form: 'FullForm', *parts: torch.Tensor) -> SoftMasks:
    """Return those of decoupled heads, of x masks and y masks (B, G, H4, W4)."""
    return ProductMasks(*parts, form.num_grids)


def _dynamic_masks(form: 'FullForm', *parts: torch.Tensor) -> SoftMasks:
    """Return those of `SOLOV2Head`, of kernels (B, S, E) and mask features (B, E, H4, W4)."""
    return DynamicMasks(*parts)


SOFT_MASKS = {
    'SOLOHead': _level_masks,
    'DecoupledSOLOHead': _product_masks,
    'DecoupledSOLOLightHead': _product_masks,
    'SOLOV2Head': _dynamic_masks,
}
"""mmdet head -> the soft masks that the tensors of its network, without the scores, stand for."""


class FullForm(nn.Module):
    """Instances from the tensors of a network."""

    def __init__(self, head: nn.Module, cap: int) -> None:
        super().__init__()
        self.num_grids, strides = ([int(one) for one in of] for of in (head.num_grids, head.strides))
        self.postprocess = MaskPostprocess(
            mask_config(head.test_cfg), self.num_grids, strides, mask_stride(head), cap
        )
        self.soft_masks = SOFT_MASKS[type(head).__name__]
        self.convs = getattr(head, 'conv_mask_list', None)

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, cate_pred: torch.Tensor, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Post-process; see `MaskPostprocess.forward`."""
        results = self.postprocess(cate_pred, self.soft_masks(self, *parts), img_shape, ori_shape)
        names = ('masks', 'scores', 'labels', 'candidates')
        return tuple(tap(name, tensor) for name, tensor in zip(names, results, strict=False))
