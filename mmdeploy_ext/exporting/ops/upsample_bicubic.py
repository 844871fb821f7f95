"""Bicubic resizing by a factor that is an input of the graph, as super-resolution networks need it.

Glossary: B batch, C channels, H, W size before, h, w after.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mmdeploy_ext.exporting.ops.operator import Operator, register


def _eager(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=float(scale), mode='bicubic', align_corners=False)


def _body(op: Any) -> Callable[..., Any]:
    def body(x, scale):
        scales = op.Concat([1.0], [1.0], scale, scale, axis=0)
        resized = op.Resize(
            x,
            None,
            scales,
            mode='cubic',
            coordinate_transformation_mode='half_pixel',
            cubic_coeff_a=-0.75,
        )
        return resized

    return body


upsample_bicubic = register(
    Operator(
        'UpsampleBicubic',
        _eager,
        inputs=dict(x='B C H W', scale='1'),
        outputs=('resized',),
        example=lambda: (torch.rand(2, 3, 5, 7), torch.tensor([2.5])),
        shapes=lambda x, scale: x.new_empty(
            (*x.shape[:2], *(torch.library.get_ctx().new_dynamic_size() for _ in ('h', 'w')))
        ),
        body=_body,
    )
)
"""Images (B, C, H, W) float32, resized as PyTorch's `interpolate` does it, align_corners=False, by scale (1,)
float32, above 0, to (B, C, h, w) with h = floor(H * scale), w = floor(W * scale). PyTorch multiplies in
float64, ONNX Runtime in float32: by 0.7, 10 rows become 6 or 7."""
