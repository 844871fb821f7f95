"""ImVoxelNet: the schema of the post-processing in its metadata."""

from mmdeploy_ext.contract.schema import COUNT, full_record
from mmdeploy_ext.families.parts.options import ANCHOR_FACTS, check_anchors

_FIELDS = {name: check for name, check in ANCHOR_FACTS.items() if name not in ('max_num', 'cells')}
POSTPROCESS = full_record(max_per_img=COUNT, **_FIELDS, also=check_anchors)
"""The entry `postprocess`: the attributes of an `AnchorRule`, of which `max_num` is `max_per_img`."""
