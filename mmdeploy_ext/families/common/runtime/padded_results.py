"""Results of graphs with all of the post-processing; refusal of incomplete results.

Glossary: B batch, n results of the fullest image, or a constant of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.runtime.detections import check_all_seen, check_cap, results_from_padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Arrays, Detections, Scored
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections of each image of a batch, without padding.

    Args:
        metadata: metadata of the file.
        outputs: `dets` (B, n, 5) x1 y1 x2 y2 score, in pixels of the original if `scale_factor` was fed, else
            of the network input, and `labels` (B, n) int64, -1 for padding. `boxes` (B, n, 4) and `scores`
            (B, n) may replace `dets`; `masks` and `scores` give `Instances`. A file with a limit adds counts
            of candidates.
        feeds: not read.
    """
    check_form(metadata)
    results = results_from_padded(outputs)
    check_caps(metadata, outputs, results)
    return results


def check_form(metadata: Metadata) -> None:
    """Raise ModelFileError for the first of two graphs: it has no detections."""
    if metadata.form == 'proposals':
        raise ModelFileError(
            'a file of form proposals returns no detections: feed its outputs by name to the file of form '
            'regions of the same model'
        )


def check_caps(metadata: Metadata, outputs: Arrays, results: Sequence[Scored]) -> None:
    """Raise ModelFileError, naming the limit, if constant shapes may have dropped results."""
    check_all_seen(metadata, outputs, 'max_proposals', 'proposal_candidates')
    check_cap(metadata, outputs, results)
