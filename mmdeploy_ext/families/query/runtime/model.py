"""Detectors of queries without PyTorch: a `full` graph does all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.detections import results_from_padded

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections

RUNNERS = {'full': 'tools/onnx/onnx_with_postprocess.py'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections per image of the outputs of a `full` graph."""
    return results_from_padded(outputs)
