"""Facts of a traced test path."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Limit, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedFacts(Facts):
    """Facts of a traced test path.

    Attributes:
        num_classes: classes of the results, or None.
        max_per_img: of `test_cfg`; -1: none.
        mask_thr: inclusive threshold of masks in the frame of their boxes, or None.
        test_cfg: numbers of the model's `test_cfg`, nested.
        escapes: lines of code whose result for the example is in the graph; `valid` tells where it is
            another one.
        difference: first node in which traces of two pictures differ; '' if they are equal.
    """

    num_classes: Count | None = optional()
    max_per_img: Limit = -1
    mask_thr: Fraction | None = optional()
    test_cfg: Mapping[str, Any]
    escapes: tuple[str, ...] = ()
    difference: str = ''
