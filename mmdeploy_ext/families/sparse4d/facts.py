"""Sparse4D: facts of a model, which its files keep."""

import dataclasses

from mmdeploy_ext.contract.facts import Count, Facts, Fraction, Positive


@dataclasses.dataclass(frozen=True)
class Sparse4DFacts(Facts):
    """Facts of a model.

    Attributes:
        max_num: most boxes of a frame.
        score_threshold: smallest score of a class, without the centerness, of a box, and of an instance that
            gets a new id; None: every one passes.
        num_instances, num_temp: instances of a frame, and number that is handed on.
        confidence_decay: factor by which a confidence of the last frame counts in this one.
        default_time_interval: seconds that a graph gets if there is no last frame, if it is more than
            `max_time_interval` away, or if both have one time.
        max_time_interval: seconds; largest distance of two frames, forwards or backwards, that still belong
            together.
    """

    max_num: Count
    score_threshold: float | None
    num_classes: Count
    num_instances: Count
    num_temp: Count
    confidence_decay: Fraction
    default_time_interval: Positive
    max_time_interval: Positive
