"""StreamPETR: its options, and the schema of the post-processing in the metadata of its files."""

from mmdeploy_ext.contract.schema import COUNT, number, open_record
from mmdeploy_ext.families.parts.options import BOX_FACTS, STREAM_OPTIONS

OPTIONS = STREAM_OPTIONS
"""Options of the family."""
POSTPROCESS = open_record(
    **BOX_FACTS,
    memory_len=COUNT,
    topk_proposals=COUNT,
    num_propagated=number(0, 100_000, integer=True),
)
"""Schema of `StreamPetrFamily.postprocess_facts`."""
