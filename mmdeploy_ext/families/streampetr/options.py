"""StreamPETR: options of exports. No torch."""

from mmdeploy_ext.contract.options import own_contract
from mmdeploy_ext.families.parts.options import LAYERS

OPTIONS = (own_contract('deploy', 'three graphs, state in the last LiDAR frame'), LAYERS)
"""Options of the family."""
