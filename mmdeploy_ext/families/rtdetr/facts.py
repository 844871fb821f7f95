"""Facts of RT-DETR."""

import dataclasses

from mmdeploy_ext.families.common.options import GRID_SAMPLE
from mmdeploy_ext.spec.facts import Count, Facts
from mmdeploy_ext.spec.options import OF_SOME, Option


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


FUSE = Option(
    'fuse',
    True,
    'merge the branches of RepVGG blocks into one convolution (default: yes)',
    group=OF_SOME,
)
DYNAMIC_BATCH = Option('dynamic_batch', False, 'dynamic batch, fixed size', group=OF_SOME)
OPTIONS = (FUSE, GRID_SAMPLE, DYNAMIC_BATCH)
