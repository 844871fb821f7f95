"""Detections of a `full` graph, which does all but taking the padding away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.detections import results_from_padded

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections

RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections per image of the outputs of a `full` graph."""
    return results_from_padded(outputs)
