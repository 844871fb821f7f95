"""Facts of PETR and PETRv2 models, kept in their files."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mm2onnx_driving.common.runtime.query_boxes import QueryBoxFacts
from mmdeploy_ext.spec.facts import Positive

FRAME, RIG, MODEL = 'frame', 'rig', 'model'
"""Lifetime of a value: a frame, until calibration or image size change, for ever."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PetrFacts(QueryBoxFacts):
    """Facts of a PETR or PETRv2.

    Attributes:
        start_gap_s: time gap at the first frame.
        valid_for: input of a graph, or constant -> its lifetime.
    """

    start_gap_s: Positive
    valid_for: Mapping[str, Literal['frame', 'rig', 'model']]
