"""Names of a backbone saved after folding its batch normalisations. Uses torch.

NVIDIA's PTQ scripts delete folded BatchNorms: the convolution gets a bias, and later layers of a sequence
move up (`conv2.3.conv1` becomes `conv2.2.conv1`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')
"""Tensors that decide a BatchNorm."""


@dataclasses.dataclass
class Names:
    """Names of a module's tensors and submodules in a file.

    Attributes:
        keys: key of the module -> key in the file.
        paths: submodule in the file -> in the module.
        folded: missing BatchNorm of the module -> its convolution in the file, and eps.
    """

    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    folded: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

    def file_keys(self) -> set[str]:
        return {*self.keys.values(), *(f'{path}.bias' for path, _ in self.folded.values())}

    def module_path(self, path: str) -> str:
        """Path in the module for a path in the file."""
        head, tail = path, ''
        while head and head not in self.paths:
            head, _, last = head.rpartition('.')
            tail = f'.{last}{tail}'
        return f'{self.paths.get(head, head)}{tail}'.lstrip('.')

    def norm_tensors(
        self, state_dict: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """float32 tensors (C,) for missing BatchNorms, by key of the module; they only add the bias."""
        tensors: dict[str, torch.Tensor] = {}
        for norm, (conv, eps) in self.folded.items():
            bias = weights[f'{conv}.bias'].float()
            ones = torch.ones_like(bias)
            # batch normalisation divides by sqrt(var + eps), which is 1 here
            values = zip(NORM_KEYS, (ones, bias, 0 * ones, ones - eps), strict=True)
            tensors |= {f'{norm}.{key}': value for key, value in values}
            conv_bias = f'{self.paths[conv]}.bias'
            if conv_bias in state_dict:
                tensors[conv_bias] = 0 * ones
        return tensors


def match_names(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Names:
    """Names of a module's tensors in a file; only keys of `weights` are read.

    A BatchNorm counts as folded if the file lacks its `NORM_KEYS` and has a bias for the convolution before
    it.
    """
    names = Names()
    _add_names(module, '', '', weights, names)
    return names


def _add_names(
    module: nn.Module, prefix: str, file_prefix: str, weights: Mapping[str, torch.Tensor], names: Names
) -> None:
    names.paths[file_prefix.rstrip('.')] = prefix.rstrip('.')
    persistent = module.state_dict(keep_vars=True).keys()
    tensors = (*module._parameters, *module._buffers)
    names.keys.update({f'{prefix}{name}': f'{file_prefix}{name}' for name in tensors if name in persistent})
    conv, moved = None, 0
    for name, child in module.named_children():
        file_name = str(int(name) - moved) if name.isdigit() else name
        is_folded = (
            conv is not None
            and isinstance(child, nn.modules.batchnorm._BatchNorm)
            and f'{file_prefix}{conv}.bias' in weights
            and not any(f'{file_prefix}{file_name}.{key}' in weights for key in NORM_KEYS)
        )
        if is_folded:
            names.folded[f'{prefix}{name}'] = f'{file_prefix}{conv}', child.eps
            if name.isdigit():
                moved += 1
            continue
        _add_names(child, f'{prefix}{name}.', f'{file_prefix}{file_name}.', weights, names)
        conv = file_name if hasattr(child, 'kernel_size') else None
