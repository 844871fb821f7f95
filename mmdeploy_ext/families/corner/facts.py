"""Facts of detectors of corners."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts


@dataclasses.dataclass(frozen=True)
class CornerFacts(Facts):
    """Settings of `test_cfg`.

    Attributes:
        corner_topk: corners of a kind.
        max_per_img: number of results.
        local_maximum_kernel: side, cells, of the square in which a corner is the highest.
        distance_threshold: largest difference of a pair's embeddings; for CentripetalNet the largest share of
            the central region between the two centres.
    """

    corner_topk: Count
    max_per_img: Count
    local_maximum_kernel: Count
    distance_threshold: float
    num_classes: Count
