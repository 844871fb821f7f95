"""The bias of mmdet's window attention (Swin) as a buffer: a constant, not a lookup at every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.exporting.fold import PREPARATIONS

if TYPE_CHECKING:
    from torch import nn


def keep_position_bias(module: nn.Module) -> None:
    """Keep the rows of a module's `relative_position_bias_table` that its exporter would look up.

    The exporter folds the lookup, and in a buffer the structure check finds its result again.
    """
    if hasattr(module, 'relative_position_bias_table'):
        rows = module.relative_position_bias_table[module.relative_position_index.flatten()]
        bias = rows.reshape(*module.relative_position_index.shape, -1).permute(2, 0, 1).contiguous()
        module.register_buffer('relative_position_bias', bias.detach())


PREPARATIONS.append(keep_position_bias)
