"""Level 3 of a proof for panoptic maps: segments are matched one to one, by class and IoU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.proof.tasks import mask
from mmdeploy_ext.proof.tasks.mask import draw_pair, fit_pair, pair_up

if TYPE_CHECKING:
    from mmdeploy_ext.proof.results import DetectionRow
    from mmdeploy_ext.runtime.panoptic import Segments

__all__ = ['draw_pair', 'fit_pair', 'match_detections', 'pair_up']


def match_detections(
    image: str, reference: Segments, candidate: Segments, *, capacity: int | None = None, **more: Any
) -> DetectionRow:
    """Match the segments of two maps; see `mask.match_detections`.

    Nothing is excused at a limit of results: no segment has a score, and all would be ties.
    """
    return mask.match_detections(image, reference, candidate, **more)
