"""Two-stage detectors without PyTorch: a `full` graph does all but taking the padding away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.detections import check_all_seen, check_cap, results_from_padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections, Scored

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


def check_form(metadata: Metadata) -> None:
    """Refuse the first of two graphs, which gives no detections: ModelFileError."""
    if metadata.form == 'proposals':
        raise ModelFileError(
            'this file of form proposals gives no detections: feed its outputs, by their names, to the file '
            'of form regions of the same model'
        )


def check_caps(metadata: Metadata, outputs: Arrays, found: Sequence[Scored]) -> None:
    """Refuse results of a file with constant shapes that may lack some: ModelFileError names the limit."""
    check_all_seen(metadata, outputs, 'max_proposals', 'proposal_candidates')
    check_cap(metadata, outputs, found)
