"""Facts of SOLO, Decoupled SOLO and SOLOv2."""

import dataclasses
from typing import Literal

from mmdeploy_ext.spec.facts import Count, MaskConfig, Mismatch, Stride
from mmdeploy_ext.spec.options import MAX_CANDIDATES, OF_SOME, Option


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoloFacts(MaskConfig):
    """Thresholds and grids.

    Attributes:
        head: class of mmdet's head.
        num_grids: cells along a side of each level.
        strides: per level; exclusive least area of an instance, pixels of the soft masks.
        mask_stride: pixels of the input per pixel of the soft masks.
        cells: order of the cells, in words.
    """

    head: Literal['SOLOHead', 'DecoupledSOLOHead', 'DecoupledSOLOLightHead', 'SOLOV2Head']
    num_classes: Count
    num_grids: tuple[Count, ...]
    strides: tuple[Stride, ...]
    mask_stride: Count
    cells: str = 'level after level, each row by row; cell (i, j) of level l is i * num_grids[l] + j'

    def check(self) -> None:
        if len(self.num_grids) != len(self.strides):
            raise Mismatch(f'num_grids has {len(self.num_grids)} entries, strides has {len(self.strides)}')


LAYOUT = Option(
    'layout',
    'batched',
    'raw form: cells of all levels with a batch axis (default), or the outputs of the fork '
    'zhangjinsong3/SOLOv2.tensorRT',
    ('batched', 'fork'),
    only_with=('form', 'raw'),
    group=OF_SOME,
)
OPTIONS = (LAYOUT, MAX_CANDIDATES)
