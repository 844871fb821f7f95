"""Masks of RTMDet-Ins and CondInst from small logits to the original image, as matrix products.

PyTorch resizes them two or three times; ONNX Runtime takes half as long for the products of the weights.
Glossary: n instances, h, w size of the logits, t lines of a result.
"""

from typing import Any

import torch
from torch.nn import functional as F

from mmdeploy_ext.exporting.postprocess.mask_resize import interpolation, resizing
from mmdeploy_ext.exporting.traced.mode import is_traced
from mmdeploy_ext.upstream.operators.operator import hw


def rtmdet_masks(method: Any) -> Any:
    """`RTMDetIns.masks`: enlarged to the input, resized as `mask_size` says, cropped to the original."""

    def masks(self: Any, logits: torch.Tensor, meta: Any) -> torch.Tensor:
        if not is_traced():
            return method(self, logits, meta)
        from mmdeploy_ext.upstream.models.instance_masks import ROUNDED  # no copy of mmdet before 2.18 can

        logits, size = one_more(logits), hw(logits)
        stride = self.bbox_head.prior_generator.strides[0][0]
        weights, inside = [], []
        for axis in (0, 1):
            wide, lines = size[axis] * stride, lines_of(meta['ori_shape'][axis])
            length = torch.ceil(wide / meta['scale_factor'][axis] - ROUNDED)
            places = (lines + 0.5) * (wide / length) - 0.5
            weights.append(bilinear(places, wide) @ resizing(size[axis], wide))
            inside.append(lines < length)
        soft = (weights[0] @ logits @ weights[1].T).sigmoid()[0, :-1]
        return (soft > self.test_cfg[self.threshold]) & (inside[0] & inside[1].T)

    return masks


def condinst_masks(method: Any) -> Any:
    """`CondInst.masks`: probabilities enlarged to the input, cropped, resized to the original."""

    def masks(self: Any, logits: torch.Tensor, meta: Any) -> torch.Tensor:
        if not is_traced():
            return method(self, logits, meta)
        size, ratio = hw(logits), self.mask_head.ratio
        rows, columns = (aligned(size[axis], ratio) for axis in (0, 1))
        soft, weights = (rows @ one_more(logits) @ columns.T).sigmoid(), []
        for axis in (0, 1):
            crop = meta['img_shape'][axis].to(torch.float32)
            middle = aligned(size[axis] * ratio, self.mask_head.mask_out_stride)
            pixels, lines = lines_of(middle.shape[0])[:, 0], lines_of(meta['ori_shape'][axis])
            weights.append(interpolation(crop, lines, pixels) @ middle)
        return (weights[0] @ soft @ weights[1].T)[0, :-1] > self.test_cfg[self.threshold]

    return masks


def one_more(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (1, n + 1, h, w): ONNX Runtime refuses the product of a matrix and no maps."""
    return F.pad(maps, (0, 0, 0, 0, 0, 1))


def lines_of(count: torch.Tensor | int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None]


def aligned(size: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the weights (size * factor, size) of `aligned_bilinear`."""
    return bilinear((lines_of(size * factor) - factor // 2).clamp(min=0) / factor, size)


def bilinear(places: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return bilinear weights (t, size) of places (t, 1) in lines."""
    places = torch.minimum(places.clamp(min=0), (size - 1).to(places))
    return (1 - (places - lines_of(size).T).abs()).clamp(min=0)
