"""Priors of boxes, and the rows of maps that go with them."""

import copy
from typing import Any

import torch

from mmdeploy_ext.exporting.same_bytes import SameBytes


def rows_of(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """Return (B, a*columns, h, w) as (B, h*w*a, columns)."""
    return tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)


def same_priors(generator: Any) -> Any:
    """Return a generator of priors whose numbers are those of every machine."""
    priors = copy.copy(generator)
    if hasattr(priors, 'base_anchors'):
        with SameBytes():  # roots of the ratios
            priors.base_anchors = priors.gen_base_anchors()
    return priors
