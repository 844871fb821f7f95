"""Names of a backbone whose batch normalisations were folded before it was saved. Uses torch.

NVIDIA's PTQ scripts fold a BatchNorm into the convolution before it and delete it: the convolution gets a
bias, and in a sequence the layers behind it move up by one (`conv2.3.conv1` becomes `conv2.2.conv1`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')


@dataclasses.dataclass
class Names:
    """How a module's names are in a file.

    Attributes:
        keys: key of the module -> key in the file.
        paths: path of a submodule in the file -> in the module.
        folded: path of each BatchNorm that the file has no more -> file's path of the convolution, and eps.
    """

    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    folded: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

    def used(self, keys: Iterable[str]) -> set[str]:
        """Return those of a file's keys that a key of the module stands for."""
        known = {*self.keys.values(), *(f'{path}.bias' for path, _ in self.folded.values())}
        return known & set(keys)

    def own_path(self, path: str) -> str:
        """Return the path in the module of something in the file below a submodule of it."""
        head, tail = path, ''
        while head and head not in self.paths:
            head, _, last = head.rpartition('.')
            tail = f'.{last}{tail}'
        return f'{self.paths.get(head, head)}{tail}'.lstrip('.')

    def derived(
        self, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return what the module needs instead of the folded BatchNorms: ones that only add the file's bias.

        `own` is the module's state dict, `weights` the file's, without prefix.
        """
        found: dict[str, torch.Tensor] = {}
        for norm, (conv, eps) in self.folded.items():
            bias = weights[f'{conv}.bias'].float()
            ones = torch.ones_like(bias)
            # batch normalisation divides by sqrt(var + eps), which is 1 here
            values = zip(NORM_KEYS, (ones, bias, 0 * ones, ones - eps), strict=True)
            found |= {f'{norm}.{key}': value for key, value in values}
            conv_bias = f'{self.paths[conv]}.bias'
            if conv_bias in own:
                found[conv_bias] = 0 * ones
        return found


def match_names(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Names:
    """Return how a module's names are in a file, of its tensors without prefix.

    A BatchNorm counts as folded where the file has no tensor of it and a bias for the convolution before it;
    everywhere else the names are the module's own.
    """
    names = Names()
    _walk(module, '', '', weights, names)
    return names


def _walk(module: nn.Module, own: str, file: str, weights: Mapping[str, torch.Tensor], names: Names) -> None:
    names.paths[file.rstrip('.')] = own.rstrip('.')
    persistent = module.state_dict(keep_vars=True).keys()
    tensors = (*module._parameters, *module._buffers)
    names.keys.update({f'{own}{name}': f'{file}{name}' for name in tensors if name in persistent})
    before, moved = None, 0
    for name, child in module.named_children():
        in_file = str(int(name) - moved) if name.isdigit() else name
        if before is not None and _is_folded(child, f'{file}{before}', f'{file}{in_file}', weights):
            names.folded[f'{own}{name}'] = f'{file}{before}', child.eps
            moved += name.isdigit()
            continue
        _walk(child, f'{own}{name}.', f'{file}{in_file}.', weights, names)
        before = in_file if hasattr(child, 'kernel_size') else None


def _is_folded(child: nn.Module, conv: str, norm: str, weights: Mapping[str, torch.Tensor]) -> bool:
    if not isinstance(child, nn.modules.batchnorm._BatchNorm) or f'{conv}.bias' not in weights:
        return False
    return not any(f'{norm}.{key}' in weights for key in NORM_KEYS)
