"""BEVFormer: options of exports. No torch."""

from mmdeploy_ext.contract.options import own_contract
from mmdeploy_ext.families.parts.options import GRID_SAMPLE

OPTIONS = (
    own_contract('portable', "one graph of plain operators; motion and the last bird's-eye view are inputs"),
    GRID_SAMPLE,
)
"""Options of the family."""
