"""Tensors of PyTorch as arrays of numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return the numbers of a tensor as an array of its own, with its shape.

    Those of a type that numpy lacks, such as bfloat16, become float32, or complex64 if they are complex,
    quantised ones the floats that they stand for; sparse tensors are filled with zeros. NotImplementedError:
    a tensor of the meta device, which has no numbers.
    """
    import torch

    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    try:
        return tensor.numpy().copy()
    except TypeError:
        return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32).numpy()
