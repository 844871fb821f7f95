"""Are the weights of a model those of its checkpoint? PyTorch alone reads the file once more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.proving.results import Check
from mmdeploy_ext.weights.checkpoint import read_content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.exporting.model import Model

KERNEL_AXES = 5
"""Axes of a kernel of a sparse convolution, whose order versions of spconv disagree about."""


def weights_checks(deployment: Model) -> list[Check]:
    """Compare the weights of the model with those of the same names in the checkpoint.

    Names that only one of both has are left out: layers rename what older versions wrote, and a missing or
    further weight was refused when the checkpoint was loaded. A file of a backbone with folded norms, or a
    pickled module, has other weights; neither has a check, nor has a model that no file is of.
    """
    path, report = Path(deployment.checkpoint), deployment.report
    if not path.is_file() or getattr(report, 'folded', ()) or getattr(report, 'form', '') == 'pickled module':
        return []
    content = read_content(path)
    tensors = {
        str(name).removeprefix('module.'): tensor
        for name, tensor in content.get('state_dict', content).items()
        if isinstance(tensor, torch.Tensor)
    }
    if getattr(report, 'prefix', None) is not None:  # of a backbone, which may have another place in its file
        place = f'{report.encoder}.' if report.encoder else ''
        tensors = {place + name.removeprefix(report.prefix): tensor for name, tensor in tensors.items()}
    detail = differing_weights(deployment.model.state_dict(), tensors)
    return [Check(f'weights of {path.name}', not detail, detail)]


def differing_weights(weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return which weights of a model differ from the tensors of a file with their names; '' if none does."""
    shared = weights.keys() & tensors.keys()
    if not shared:
        return f'no tensor has the name of a weight of the model, such as {next(iter(weights))}'
    names = [name for name in weights if name in shared and not _are_equal(weights[name], tensors[name])]
    more = f' and {len(names) - 1} more differ' if names[1:] else ' differs'
    return f'{names[0]}{more}' if names else ''


def _are_equal(weight: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Return whether values are equal, in the type of the weight; those of kernels in any order."""
    weight, tensor = weight.cpu(), tensor.to(weight.dtype)
    if weight.ndim == KERNEL_AXES and not torch.equal(weight, tensor):
        weight, tensor = (values.flatten().sort().values for values in (weight, tensor))
    return torch.equal(weight, tensor)
