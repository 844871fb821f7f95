"""One band of a resize that is a matrix product: the lines of the map that it needs, times their weights.

One node for torch.export, which is slow with sizes that depend on values.

Glossary: B batch, n maps, s lines of a map, t lines of the result, p other axis.
"""

from __future__ import annotations

import torch

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator

TEXT = """
    {name} (weights, maps, start, stop, low, high) => (band) {{
        axis_of_lines = Constant <value = int64[1] {{2}}> ()
        axis_of_weights = Constant <value = int64[1] {{3}}> ()
        lines = Slice (weights, start, stop, axis_of_lines)
        used = Slice (lines, low, high, axis_of_weights)
        {product}
    }}"""
ROWS = """part = Slice (maps, low, high, axis_of_lines)
        band = MatMul (used, part)"""
COLUMNS = """part = Slice (maps, low, high, axis_of_weights)
        turned = Transpose <perm = [0, 1, 3, 2]> (used)
        band = MatMul (part, turned)"""


def _rows(
    weights: torch.Tensor,
    maps: torch.Tensor,
    start: torch.Tensor,
    stop: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    return weights[:, :, start:stop, low:high] @ maps[:, :, low:high]


def _columns(
    weights: torch.Tensor,
    maps: torch.Tensor,
    start: torch.Tensor,
    stop: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    return maps[..., low:high] @ weights[:, :, start:stop, low:high].transpose(2, 3)


ENDS = dict.fromkeys(('start', 'stop', 'low', 'high'), '1')


def _example() -> tuple[torch.Tensor, ...]:
    return torch.rand(2, 1, 5, 6), torch.rand(2, 3, 6, 6), *torch.tensor([[1], [3], [2], [5]])


row_band = register(
    Operator(
        'RowBand',
        _rows,
        inputs=dict(weights='B 1 t s', maps='B n s p', **ENDS),
        outputs=('band',),
        example=_example,
        shapes=lambda weights, maps, *_: maps.new_empty(
            (*maps.shape[:2], torch.library.get_ctx().new_dynamic_size(), maps.shape[3])
        ),
        body=TEXT.format(name='RowBand', product=ROWS),
    )
)
"""weights (B, 1, t, s), maps (B, n, s, p), start, stop, low, high (1,) int64 -> (B, n, stop - start, p):
rows start..stop of the result, which need rows low..high of the maps."""
column_band = register(
    Operator(
        'ColumnBand',
        _columns,
        inputs=dict(weights='B 1 t s', maps='B n p s', **ENDS),
        outputs=('band',),
        example=_example,
        shapes=lambda weights, maps, *_: maps.new_empty(
            (*maps.shape[:3], torch.library.get_ctx().new_dynamic_size())
        ),
        body=TEXT.format(name='ColumnBand', product=COLUMNS),
    )
)
"""The same along the last axis: maps (B, n, p, s) -> (B, n, p, stop - start)."""
