"""Facts of BEVDet and BEVDet4D, which their files keep."""

import dataclasses

from mmdeploy_ext.contract.facts import Positive
from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevDetFacts(CenterBoxFacts):
    """The settings of the view and of the boxes.

    Attributes:
        adjacent: number of frames before the present one that the model sees; 0 for BEVDet.
        grid_low: lowest x, y, z of the grid, metres.
        grid_step: size of its cells along x, y, z, metres.
        grid_count: number of cells along x, y, z.
        depths: metres of the depth bins.
        columns, rows: pixels of the network's picture at which the cells of the feature map are lifted.
    """

    adjacent: int
    grid_low: tuple[float, float, float]
    grid_step: tuple[Positive, Positive, Positive]
    grid_count: tuple[int, int, int]
    depths: tuple[float, ...]
    columns: tuple[float, ...]
    rows: tuple[float, ...]
