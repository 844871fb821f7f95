"""How many elements two boolean rows share, for all pairs: MatMulInteger in ONNX, floats in PyTorch."""

from __future__ import annotations

import torch
from onnx import TensorProto

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator


def _eager(hard: torch.Tensor) -> torch.Tensor:
    values = hard.to(torch.float32)
    return (values @ values.transpose(1, 2)).to(torch.int32)


COUNT_SHARED = register(
    Operator(
        'CountShared',
        _eager,
        inputs=dict(hard='B m p'),
        outputs=('shared',),
        example=lambda: (torch.tensor([[[True, False, True], [False, False, True]]]),),
        shapes=lambda hard: hard.new_empty((hard.shape[0], hard.shape[1], hard.shape[1]), dtype=torch.int32),
        body=f"""
        CountShared (hard) => (shared) {{
            values = Cast <to = {TensorProto.UINT8}> (hard)
            bytes = Cast <to = {TensorProto.INT8}> (hard)
            turned = Transpose <perm = [0, 2, 1]> (bytes)
            shared = MatMulInteger (values, turned)
        }}""",
    )
)
"""One side with a sign, as VNNI multiplies: twice as fast as both without."""


def count_shared(hard: torch.Tensor) -> torch.Tensor:
    """Return (B, m, m) int32 counts for rows (B, m, p) bool, p below 2^24; exact."""
    return COUNT_SHARED(hard)
