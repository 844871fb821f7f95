"""How many elements two boolean rows share, for all pairs: MatMulInteger in ONNX, floats in PyTorch."""

from __future__ import annotations

from typing import Any

import torch

UINT8, INT8 = 2, 3
"""Of onnx.TensorProto. One side with a sign, as VNNI multiplies: twice as fast as both without."""


class CountShared(torch.autograd.Function):
    """hard @ hard^T of boolean rows, exact."""

    @staticmethod
    def forward(ctx: Any, hard: torch.Tensor) -> torch.Tensor:
        """Return (B, m, m) int32 counts for rows (B, m, p) bool, p below 2^24."""
        values = hard.to(torch.float32)
        return (values @ values.transpose(1, 2)).to(torch.int32)

    @staticmethod
    def symbolic(g: Any, hard: Any) -> Any:
        """Emit MatMulInteger (opset 10) on bytes."""
        values = g.op('Cast', hard, to_i=UINT8)
        other = g.op('Transpose', g.op('Cast', hard, to_i=INT8), perm_i=[0, 2, 1])
        sizes = [*hard.type().sizes()[:2], hard.type().sizes()[1]] if hard.type().sizes() else None
        return g.op('MatMulInteger', values, other).setType(
            hard.type().with_dtype(torch.int32).with_sizes(sizes or [None] * 3)
        )
