"""PETR and PETRv2: facts of a model, which its files keep."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mmdeploy_ext.contract.facts import Positive
from mmdeploy_ext.families.parts.runtime.query_boxes import QueryBoxFacts

FRAME, RIG, MODEL = 'frame', 'rig', 'model'
"""How long a value may be used again: for one frame, until calibration or image size change, for ever."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PetrFacts(QueryBoxFacts):
    """Facts of a model.

    Attributes:
        start_gap_s: time that stands for the gap where there is no frame before.
        valid_for: input of a graph, or constant -> for how long a value of it may be used again.
    """

    start_gap_s: Positive
    valid_for: Mapping[str, Literal['frame', 'rig', 'model']]
