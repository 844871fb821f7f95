"""Facts of StreamPETR models, kept in their files."""

import dataclasses
from typing import Annotated

from mmdeploy_ext.contract.facts import Bounds, Count
from mmdeploy_ext.families.common.runtime.query_boxes import QueryBoxFacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPetrFacts(QueryBoxFacts):
    memory_len: Count
    topk_proposals: Count
    num_propagated: Annotated[int, Bounds(0, 100_000)]
