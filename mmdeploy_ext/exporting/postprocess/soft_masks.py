"""Soft masks of grid cells, computed only for the cells that are requested.

Glossary: B batch, S cells of all levels, G grid lines of all levels (a grid of g * g cells has g rows and g
columns), E channels of a kernel, D channels of features, R rows of a table, m requested cells (at least one),
H4, W4 size of the masks, about a quarter of the input, p pixels of a piece (0 or more), 2h, 2w size of a
level's masks. Cells go level by level, pixels row by row.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnx import TensorProto

from mmdeploy_ext.exporting.postprocess.mask_resize import resizing
from mmdeploy_ext.runtime.mask_resize import lines
from mmdeploy_ext.upstream.operators.operator import Operator, length, register

PIECES = 8
"""Parts of the map that are computed one after the other, to fit into the caches."""
SAME_SIZE = 2
"""Number of first levels of equal mask size: mmdet resizes the first level's features to the second's size.
"""


def _keep_above(values: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.nn.functional.threshold(values, threshold, 0.0)


def _count_shared(hard: torch.Tensor) -> torch.Tensor:
    return _count_by_floats(hard).to(torch.int32)


def _count_by_floats(hard: torch.Tensor) -> torch.Tensor:
    hard = hard.to(torch.float32)
    return hard @ hard.transpose(1, 2)


def _keep_above_body(op: Any) -> Callable[..., Any]:
    def body(values, threshold: float):
        kept = op.ThresholdedRelu(values, alpha=threshold)
        return kept

    return body


KEEP_ABOVE = register(
    Operator(
        'KeepAbove',
        _keep_above,
        inputs=dict(values='N'),
        outputs=('kept',),
        example=lambda: (torch.tensor([0.1, 0.5, 0.9]),),
        shapes=lambda values, threshold: torch.empty_like(values),
        body=_keep_above_body,
    )
)
"""x where x > threshold, else 0; any shape, float32: one operator in ONNX, one pass over memory."""


def _count_shared_body(op: Any) -> Callable[..., Any]:
    def body(hard):
        values = op.Cast(hard, to=TensorProto.UINT8)
        turned = op.Transpose(op.Cast(hard, to=TensorProto.INT8), perm=[0, 2, 1])
        shared = op.MatMulInteger(values, turned)
        return shared

    return body


COUNT_SHARED = register(
    Operator(
        'CountShared',
        _count_shared,
        inputs=dict(hard='B m p'),
        outputs=('shared',),
        example=lambda: (torch.tensor([[[True, False, True], [False, False, True]]]),),
        shapes=lambda hard: hard.new_empty((hard.shape[0], hard.shape[1], hard.shape[1]), dtype=torch.int32),
        body=_count_shared_body,
    )
)
"""(B, m, p) bool -> (B, m, m) int32: elements that are True in both rows, for all pairs; p below 2^24."""


def piece_bounds(size: torch.Tensor | int) -> Iterator[tuple[torch.Tensor | int, torch.Tensor | int]]:
    """Yield start and stop of `PIECES` nearly equal parts of `size` elements, one behind the other."""
    for piece in range(PIECES):
        yield size * piece // PIECES, size * (piece + 1) // PIECES


def pick_rows(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of each image's table, (B, m, ...); `table` (B, R, ...), `rows` (B, m) int64, unchecked."""
    batch, count = table.shape[0], table.shape[1]
    shift = torch.arange(batch, device=rows.device)[:, None] * count
    return table.flatten(0, 1)[rows + shift]


class SoftMasks(abc.ABC):
    """The soft masks of all cells: probabilities (0..1) of pixels to belong to the instance of a cell.

    A subclass per kind of head; methods take cells (B, m) int64 in 0..S-1.
    """

    @abc.abstractmethod
    def chunks(self, cells: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the masks of cells (B, m), piece by piece: (B, m, p) flat pixels."""

    @abc.abstractmethod
    def maps(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the masks of cells (B, m): (B, m, H4, W4)."""

    def sums(self, cells: torch.Tensor, mask_thr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels above `mask_thr` in 0..1 per mask, and their sum, (B, m) float32."""
        areas = totals = 0
        for soft in self.chunks(cells):
            values = KEEP_ABOVE(soft, mask_thr).clamp(max=1)  # ONNX Runtime's sigmoid exceeds 1 by rounding
            totals = totals + values.sum(dim=2)
            areas = areas + values.ceil().sum(dim=2)
        return areas, totals

    def overlaps(self, cells: torch.Tensor, mask_thr: float, integer: bool) -> torch.Tensor:
        """Return the number of pixels (B, m, m) float32 that two masks of cells (B, m) share."""
        count = COUNT_SHARED if integer else _count_by_floats
        return sum(count(soft > mask_thr) for soft in self.chunks(cells)).to(torch.float32)


class DynamicMasks(SoftMasks):
    """SOLOv2: the sigmoid of a cell's kernel times the mask features (flat: (B, E, H4 * W4))."""

    def __init__(self, kernels: torch.Tensor, features: torch.Tensor) -> None:
        """Keep kernels (B, S, E) and features (B, E, H4, W4)."""
        self.kernels, self.size = kernels, features.shape[2:]
        self.features = features.flatten(2)

    def chunks(self, cells: torch.Tensor) -> Iterator[torch.Tensor]:
        picked = pick_rows(self.kernels, cells)
        for start, stop in piece_bounds(self.features.shape[2]):
            yield (picked @ self.features[:, :, start:stop]).sigmoid()

    def maps(self, cells: torch.Tensor) -> torch.Tensor:
        flat = (pick_rows(self.kernels, cells) @ self.features).sigmoid()
        return flat.reshape(flat.shape[0], cells.shape[1], *self.size)


class ProductMasks(SoftMasks):
    """Decoupled SOLO: the product of a column's and a row's probability.

    `column_of` and `row_of` (S,): column and row of each cell, numbered over all levels.
    """

    def __init__(self, columns: torch.Tensor, rows: torch.Tensor, num_grids: Sequence[int]) -> None:
        """Keep masks of columns and of rows (B, G, H4, W4), probabilities; `num_grids` is g of each level."""
        self.size = columns.shape[2:]
        self.columns, self.rows = columns.flatten(2), rows.flatten(2)
        self.column_of, self.row_of = (
            torch.tensor(line_of.tolist(), device=columns.device) for line_of in lines(num_grids)
        )

    def chunks(self, cells: torch.Tensor) -> Iterator[torch.Tensor]:
        for start, stop in piece_bounds(self.columns.shape[2]):
            yield self._product(cells, self.columns[:, :, start:stop], self.rows[:, :, start:stop])

    def maps(self, cells: torch.Tensor) -> torch.Tensor:
        flat = self._product(cells, self.columns, self.rows)
        return flat.reshape(flat.shape[0], cells.shape[1], *self.size)

    def _product(self, cells: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return pick_rows(columns, self.column_of[cells]) * pick_rows(rows, self.row_of[cells])


class LevelMasks(SoftMasks):
    """SOLO: the sigmoid of a level's own convolution for the cell, resized to the size of the first level.

    `starts`: first cell of each level; `level_of` (S,): level of each cell.
    """

    def __init__(
        self,
        features: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        *,
        fixed: bool = False,
    ) -> None:
        """Keep features (B, D, 2h, 2w), weights (g * g, D) and biases (g * g,) per level."""
        self.features, self.weights, self.biases, self.fixed = features, weights, biases, fixed
        self.size = features[0].shape[2:]
        counts = [len(bias) for bias in biases]
        self.starts = [sum(counts[:level]) for level in range(len(counts))]
        levels = [level for level, count in enumerate(counts) for _ in range(count)]
        self.level_of = torch.tensor(levels, device=features[0].device)

    def chunks(self, cells: torch.Tensor) -> Iterator[torch.Tensor]:
        levels, places = self._levels(cells)
        for start, stop in piece_bounds(self.size[0]):
            bands = [
                (soft[:, :, start:stop] if rows is None else rows[start:stop] @ soft).flatten(2)
                for soft, rows in levels
            ]
            yield pick_rows(torch.cat(bands, dim=1), places)

    def maps(self, cells: torch.Tensor) -> torch.Tensor:
        levels, places = self._levels(cells)
        resized = [soft if rows is None else rows @ soft for soft, rows in levels]
        flat = torch.cat([soft.flatten(2) for soft in resized], dim=1)
        flat = pick_rows(flat, places)
        return flat.reshape(flat.shape[0], cells.shape[1], *self.size)

    def _levels(self, cells: torch.Tensor) -> tuple[list[tuple[torch.Tensor, Any]], torch.Tensor]:
        belongs = self.level_of[cells]
        levels, places, offset = [], torch.zeros_like(cells), 0
        first_best = torch.arange(cells.shape[1], 0, -1, device=cells.device).to(torch.float32)[None]
        for level, features in enumerate(self.features):
            mine = belongs == level
            # at least one mask: not every engine multiplies matrices without rows
            count = cells.shape[1] if self.fixed else mine.sum(dim=1).max().clamp(min=1)
            rows = (mine.to(torch.float32) * first_best).topk(count, dim=1)[1]
            real = mine.gather(1, rows)
            inside = torch.where(real, cells.gather(1, rows) - self.starts[level], torch.zeros_like(rows))
            places = torch.where(mine, mine.to(torch.int64).cumsum(dim=1) - 1 + offset, places)
            products = self.weights[level][inside] @ features.flatten(2)
            logits = products + self.biases[level][inside][..., None]
            soft = logits.sigmoid().reshape(features.shape[0], inside.shape[1], *features.shape[2:])
            row_matrix = None
            if level >= SAME_SIZE:
                sides = zip(features.shape[2:], self.size, strict=True)
                row_matrix, columns = (resizing(length(old), length(new)) for old, new in sides)
                soft = soft @ columns.transpose(0, 1)
            levels.append((soft, row_matrix))
            offset = offset + count
        return levels, places
