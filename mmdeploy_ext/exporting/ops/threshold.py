"""Values above a threshold, zero elsewhere: one operator in ONNX (ThresholdedRelu), one pass over memory."""

from __future__ import annotations

from typing import Any

import torch


class KeepAbove(torch.autograd.Function):
    """x where x > threshold, else 0."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, threshold: float) -> torch.Tensor:
        """Return (...) of the shape and dtype of `values`; a value equal to the threshold becomes 0."""
        return torch.nn.functional.threshold(values, threshold, 0.0)

    @staticmethod
    def symbolic(g: Any, values: Any, threshold: float) -> Any:
        """Emit ThresholdedRelu (opset 10)."""
        return g.op('ThresholdedRelu', values, alpha_f=threshold).setType(values.type())
