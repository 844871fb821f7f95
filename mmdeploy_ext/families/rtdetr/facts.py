"""Facts of RT-DETR."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class RtDetrFacts(Facts):
    """Numbers of results, queries and classes.

    Attributes:
        orig_target_sizes: column order, in words.
        position_layout: column order of the position embedding, in words.
    """

    max_per_img: Count
    num_queries: Count
    num_classes: Count
    orig_target_sizes: str = 'width, height'
    position_layout: str
