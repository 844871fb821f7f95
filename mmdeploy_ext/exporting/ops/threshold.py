"""Values above a threshold, zero elsewhere: one operator in ONNX (ThresholdedRelu), one pass over memory."""

from __future__ import annotations

import torch

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator


def _eager(values: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.nn.functional.threshold(values, threshold, 0.0)


KEEP_ABOVE = register(
    Operator(
        'KeepAbove',
        _eager,
        inputs=dict(values='N'),
        outputs=('kept',),
        example=lambda: (torch.tensor([0.1, 0.5, 0.9]),),
        shapes=lambda values, threshold: torch.empty_like(values),
        body="""
        KeepAbove <threshold> (values) => (kept) {
            kept = ThresholdedRelu <alpha: float = @threshold> (values)
        }""",
    )
)


def keep_above(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return x where x > threshold, else 0; any shape, float32."""
    return KEEP_ABOVE(values, threshold)
