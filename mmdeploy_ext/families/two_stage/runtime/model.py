"""Two-stage detectors without PyTorch: a `full` graph does all but taking the padding away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.families.parts.runtime.padded_results import check_caps, check_form
from mmdeploy_ext.runtime.detections import results_from_padded

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections

RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections per image of the outputs of a graph that gives some.

    Raises:
        ModelFileError: it gives proposals alone, or has `--max-proposals` or `--max-candidates` and may lack
            some.
    """
    check_form(metadata)
    found = results_from_padded(outputs)
    check_caps(metadata, outputs, found)
    return found
