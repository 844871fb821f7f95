"""Seeded models whose results differ as those of trained ones: all scores, places, sizes and headings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@torch.no_grad()
def spread_out(
    lasts: Mapping[torch.nn.Module, tuple[Sequence[float], Sequence[float]]], run: Callable[[], object]
) -> None:
    """Scale last layers so that their outputs have a deviation and a mean over all cells."""
    outputs = {last: [] for last in lasts}
    hooks = [
        last.register_forward_hook(lambda layer, _, output: outputs[layer].append(output)) for last in lasts
    ]
    run()
    for hook in hooks:
        hook.remove()
    for last, values in lasts.items():
        seen = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs[last]], 1)
        deviation, mean = (torch.tensor(value).repeat(len(seen) // len(value)) for value in values)
        factor = deviation / seen.std(1)
        last.weight.mul_(factor.view(-1, *[1] * (last.weight.dim() - 1)))
        last.bias.copy_((last.bias - seen.mean(1)) * factor + mean)
