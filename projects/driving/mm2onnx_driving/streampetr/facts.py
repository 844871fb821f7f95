"""Facts of StreamPETR models, kept in their files."""

import dataclasses
from typing import Annotated

from mm2onnx_driving.common.runtime.query_boxes import QueryBoxFacts
from mmdeploy_ext.spec.facts import Bounds, Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPetrFacts(QueryBoxFacts):
    memory_len: Count
    topk_proposals: Count
    num_propagated: Annotated[int, Bounds(0, 100_000)]
