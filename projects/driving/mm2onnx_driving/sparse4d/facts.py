"""Facts of Sparse4D models, kept in their files."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Positive


@dataclasses.dataclass(frozen=True)
class Sparse4DFacts(Facts):
    """Facts of a Sparse4D.

    Attributes:
        max_num: most boxes of a frame.
        score_threshold: least class score, without centerness, of a box and of a new id; None: no limit.
        num_instances, num_temp: instances of a frame, and instances that are handed on.
        confidence_decay: factor of a confidence of the last frame.
        default_time_interval: seconds; the interval without a last frame, of 0, or above `max_time_interval`.
        max_time_interval: seconds, in either direction.
    """

    max_num: Count
    score_threshold: float | None
    num_classes: Count
    num_instances: Count
    num_temp: Count
    confidence_decay: Fraction
    default_time_interval: Positive
    max_time_interval: Positive
