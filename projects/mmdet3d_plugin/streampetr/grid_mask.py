"""GridMask, the augmentation that hides a grid of squares of the images in training.

Source: GridMask Data Augmentation (Chen et al., 2020); the ranges of its random numbers are PETR's
(`models/utils/grid_mask.py`).
"""

import math

import torch
from torch import Tensor, nn


def stripes(position: Tensor, extent: int, period: int, thickness: int, start: int) -> Tensor:
    """Return whether each position lies in one of the `extent // period` stripes that begin at `start`."""
    offset = torch.floor(position) - start
    return (offset >= 0) & (torch.floor(offset / period) < extent // period) & (offset % period < thickness)


class GridMask(nn.Module):
    """Multiply a batch of images, in training and with probability `prob`, by one random grid.

    Args:
        use_h, use_w: whether rows, columns are cut into stripes.
        rotate: the grid is turned by a whole number of degrees below this; 1 means never.
        offset: fill what is hidden with noise in [-1, 1] instead of 0.
        ratio: thickness of a stripe in parts of the period.
        mode: 0 hides the stripes, 1 hides all else.
        prob: probability of a grid.
    """

    def __init__(
        self,
        use_h: bool,
        use_w: bool,
        rotate: int = 1,
        offset: bool = False,
        ratio: float = 0.5,
        mode: int = 0,
        prob: float = 1.0,
    ) -> None:
        super().__init__()
        self.use_h, self.use_w, self.rotate, self.offset = use_h, use_w, rotate, offset
        self.ratio, self.mode, self.prob = ratio, mode, prob

    def forward(self, x: Tensor) -> Tensor:
        """Return images (M, 3, H, W) under the grid; the same tensor where there is none."""
        if not self.training or torch.rand(()).item() > self.prob:
            return x
        keep = self.draw(*x.shape[-2:]).to(x)
        if not self.offset:
            return x * keep
        return x * keep + (2 * torch.rand(x.shape[-2:]).to(x) - 1) * (1 - keep)

    def draw(self, height: int, width: int) -> Tensor:
        """Return a random grid (H, W), 1 where the image stays; its period is drawn from 2..H - 1."""
        period = _randint(2, max(height, 3))
        thickness = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        starts = _randint(0, period), _randint(0, period)
        rows, columns = self._positions(height, width)
        hidden = torch.zeros(height, width, dtype=torch.bool)
        axes = ((self.use_h, rows, height), (self.use_w, columns, width))
        for (used, position, extent), start in zip(axes, starts, strict=True):
            if used:
                hidden |= stripes(position, int(1.5 * extent), period, thickness, start)
        return (hidden if self.mode == 1 else ~hidden).float()

    def _positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return each pixel's row and column (H, W) in the 1.5 times larger grid, turned about the centre."""
        margin_y, margin_x = (int(1.5 * height) - height) // 2, (int(1.5 * width) - width) // 2
        rows, columns = torch.meshgrid(
            torch.arange(height) + margin_y, torch.arange(width) + margin_x, indexing='ij'
        )
        angle = math.radians(_randint(0, max(self.rotate, 1)))
        if angle == 0:
            return rows.float(), columns.float()
        y, x = rows - (int(1.5 * height) - 1) / 2, columns - (int(1.5 * width) - 1) / 2
        turned_y = math.cos(angle) * y + math.sin(angle) * x + (int(1.5 * height) - 1) / 2
        turned_x = math.cos(angle) * x - math.sin(angle) * y + (int(1.5 * width) - 1) / 2
        return turned_y.round(), turned_x.round()


def _randint(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))
