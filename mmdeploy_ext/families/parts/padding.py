"""Where the content of an image lies in the maps of its levels, and the positions that follow from it.

mmdet marks padding in a mask of the input, resizes it to every level, and sums it up along rows and columns.
The content is the upper left of the input, so that a mask is the product of one of rows and one of columns;
here they stay apart. Source of the algorithm: mmdet 2.28.2 `dense_heads/deformable_detr_head.py`,
`utils/positional_encoding.py` and `utils/transformer.py`.

Glossary: B batch, h, w size of a map, H, W network input in pixels, D embedding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.exporting.postprocess.sizes import length
from mmdeploy_ext.exporting.same_bytes import SameBytes, power


@dataclasses.dataclass(frozen=True)
class Line:
    """Rows, or columns, of a map."""

    inside: torch.Tensor  # (B, n) float32, 1 where they show the image, 0 where its padding
    count: torch.Tensor  # (B, 1) float32, how many do
    place: torch.Tensor  # (n,) float32: 0, 1, 2, ...
    cells: torch.Tensor  # () float32: n


def line(content: torch.Tensor, whole: int | torch.Tensor, cells: int | torch.Tensor) -> Line:
    """Return rows of a map as neighbours of the `whole` input's; `content` (B,) are the image's, pixels."""
    place = torch.arange(cells, dtype=torch.float32, device=content.device)
    size = length(cells).to(place)
    inside = (place * (length(whole).to(place) / size) < content[:, None]).to(place.dtype)
    return Line(inside, inside.sum(1, keepdim=True), place, size)


class Level:
    """Which cells of a map (B, D, h, w) show the image."""

    def __init__(self, content: torch.Tensor, image: torch.Tensor, level: torch.Tensor) -> None:
        """Compare sizes; `content` (B, 2) is height and width of the images, pixels."""
        self.rows = line(content[:, 0], image.shape[2], level.shape[2])
        self.columns = line(content[:, 1], image.shape[3], level.shape[3])
        self.size = level.shape[2], level.shape[3]

    def inside(self) -> torch.Tensor:
        """Return (B, h * w) float32, 1 where a cell shows the image."""
        return (self.rows.inside[:, :, None] * self.columns.inside[:, None]).flatten(1)

    def grid(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return (B, h * w, 2): x, y of all cells from y (B, h) and x (B, w)."""
        height, width = self.size
        x = columns[:, None, :, None].expand(-1, height, -1, -1)
        y = rows[:, :, None, None].expand(-1, -1, width, -1)
        return torch.cat([x, y], dim=3).flatten(1, 2)

    def ratios(self) -> torch.Tensor:
        """Return (B, 2): the shares of the width and of the height that show the image."""
        return torch.cat([one.count / one.cells for one in (self.columns, self.rows)], 1)


def waves(values: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Return (..., 2 * P): sine and cosine in turns of values (...) over periods (P,)."""
    angles = values[..., None] / periods
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def periods(features: int, temperature: float) -> torch.Tensor:
    """Return the periods (features / 2,) of an encoding, the same bytes on every machine."""
    exponents = np.arange(0, features, 2, dtype=np.float32) / np.float32(features)
    return torch.from_numpy(power(temperature, exponents))


class SinePositions(nn.Module):
    """mmdet's `SinePositionalEncoding` of the cells that show the image; others get some position."""

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.register_buffer('periods', periods(encoding.num_feats, encoding.temperature), persistent=False)
        self.normalize, self.scale = encoding.normalize, encoding.scale
        self.eps, self.offset = encoding.eps, encoding.offset

    def forward(self, level: Level) -> torch.Tensor:
        """Return (B, h * w, D)."""
        y, x = (waves(self._along(one), self.periods) for one in (level.rows, level.columns))
        height, width = level.size
        y = y[:, :, None].expand(-1, -1, width, -1)
        return torch.cat([y, x[:, None].expand(-1, height, -1, -1)], dim=3).flatten(1, 2)

    def _along(self, one: Line) -> torch.Tensor:
        """Return the positions (B, n) along an axis."""
        place = torch.minimum(one.place + 1, one.count)
        if not self.normalize:
            return place
        return (place + self.offset) / (one.count + self.eps) * self.scale


class PaddedSinePositions(SinePositions):
    """Those of all cells: where a column, or a row, shows no image, mmdet counts none of its cells."""

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__(encoding)
        with torch.no_grad(), SameBytes():
            none = torch.zeros(1)
            if self.normalize:
                none = (none + self.offset) / (none + self.eps) * self.scale
            self.register_buffer('none', waves(none, self.periods), persistent=False)

    def forward(self, level: Level) -> torch.Tensor:
        y, x = (waves(self._along(one), self.periods) for one in (level.rows, level.columns))
        shows_y, shows_x = (one.inside > 0 for one in (level.rows, level.columns))
        y = torch.where(shows_x[:, None, :, None], y[:, :, None], self.none)
        x = torch.where(shows_y[:, :, None, None], x[:, None], self.none)
        return torch.cat([y, x], dim=3).flatten(1, 2)


def tokens_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (B, S, D): the cells of maps (B, D, h, w), one map after the other, each row by row."""
    return torch.cat([one.flatten(2) for one in maps], 2).transpose(1, 2)
