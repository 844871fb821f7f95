"""Padding of images in the maps of their levels, and positions of cells.

Source: mmdet 2.28.2 `dense_heads/deformable_detr_head.py`, `utils/positional_encoding.py`,
`utils/transformer.py`.
Glossary: B batch, h, w size of a map, n = h or w, D embedding, S tokens of all maps.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.upstream.operators.operator import length


@dataclasses.dataclass(frozen=True)
class Line:
    """The rows, or the columns, of a map.

    Attributes:
        inside: (B, n) float32, 1 in the image, 0 in padding.
        count: (B, 1) float32, rows of the image.
        place: (n,) float32: 0, 1, 2, ...
        cells: () float32, n.
    """

    inside: torch.Tensor
    count: torch.Tensor
    place: torch.Tensor
    cells: torch.Tensor


def line(content: torch.Tensor, side: int | torch.Tensor, cells: int | torch.Tensor) -> Line:
    """Return the rows of a map; a row is inside if its upper edge in the input is.

    `content` (B,) are heights without padding, `side` the input's, pixels (for columns: widths).
    """
    place = torch.arange(cells, dtype=torch.float32, device=content.device)
    size = length(cells).to(place)
    inside = (place * (length(side).to(place) / size) < content[:, None]).to(place.dtype)
    return Line(inside, inside.sum(1, keepdim=True), place, size)


class PaddedMap:
    """Rows and columns of a map (B, D, h, w) with their padding; `size` is (h, w)."""

    def __init__(self, content: torch.Tensor, image: torch.Tensor, level: torch.Tensor) -> None:
        self.rows = line(content[:, 0], image.shape[2], level.shape[2])
        self.columns = line(content[:, 1], image.shape[3], level.shape[3])
        self.size = level.shape[2], level.shape[3]

    def inside(self) -> torch.Tensor:
        """Return (B, h * w) float32, 1 in the image, 0 in padding."""
        return (self.rows.inside[:, :, None] * self.columns.inside[:, None]).flatten(1)

    def grid(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return (B, h * w, 2) x, y of all cells, from `rows` (B, h) and `columns` (B, w)."""
        height, width = self.size
        x = columns[:, None, :, None].expand(-1, height, -1, -1)
        y = rows[:, :, None, None].expand(-1, -1, width, -1)
        return torch.cat([x, y], dim=3).flatten(1, 2)

    def ratios(self) -> torch.Tensor:
        """Return (B, 2): shares of the image in width and height."""
        columns, rows = self.columns, self.rows
        return torch.cat([columns.count / columns.cells, rows.count / rows.cells], 1)


def waves(values: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines, in turns, of values (...) over periods (P,): (..., 2 * P)."""
    angles = values[..., None] / periods
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def periods(features: int, temperature: float) -> torch.Tensor:
    return temperature ** (torch.arange(0, features, 2) / features)


class SinePositions(nn.Module):
    """mmdet's `SinePositionalEncoding`; positions of padding are undefined."""

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.register_buffer('periods', periods(encoding.num_feats, encoding.temperature), persistent=False)
        self.normalize, self.scale = encoding.normalize, encoding.scale
        self.eps, self.offset = encoding.eps, encoding.offset

    def forward(self, level: PaddedMap) -> torch.Tensor:
        """Return positions (B, h * w, D): D / 2 values of y, then of x."""
        y = waves(self._along(level.rows), self.periods)
        x = waves(self._along(level.columns), self.periods)
        height, width = level.size
        y = y[:, :, None].expand(-1, -1, width, -1)
        return torch.cat([y, x[:, None].expand(-1, height, -1, -1)], dim=3).flatten(1, 2)

    def _along(self, cells: Line) -> torch.Tensor:
        place = torch.minimum(cells.place + 1, cells.count)
        if not self.normalize:
            return place
        return (place + self.offset) / (cells.count + self.eps) * self.scale


class PaddedSinePositions(SinePositions):
    """The same, with padding: mmdet counts 0 cells in a padded column or row."""

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__(encoding)
        with torch.no_grad():
            zero = torch.zeros(1)
            if self.normalize:
                zero = (zero + self.offset) / (zero + self.eps) * self.scale
            self.register_buffer('none', waves(zero, self.periods), persistent=False)

    def forward(self, level: PaddedMap) -> torch.Tensor:
        y = waves(self._along(level.rows), self.periods)
        x = waves(self._along(level.columns), self.periods)
        row_is_inside, column_is_inside = level.rows.inside > 0, level.columns.inside > 0
        y = torch.where(column_is_inside[:, None, :, None], y[:, :, None], self.none)
        x = torch.where(row_is_inside[:, :, None, None], x[:, None], self.none)
        return torch.cat([y, x], dim=3).flatten(1, 2)


def tokens_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (B, S, D): cells of maps (B, D, h, w), map by map, row by row."""
    return torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2)
