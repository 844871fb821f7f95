"""Results of graphs that do the whole post-processing, and refusals of files whose results may lack some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.detections import check_all_seen, check_cap, results_from_padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections, Scored

RUNNERS = {'full': 'with_postprocess'}
"""Form of a file -> the script that draws its results, see `runtime/family_runtime.py`."""


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections per image of the outputs of a graph, without their padding.

    Raises:
        ModelFileError: the outputs of the graph are proposals, or it was exported with `--max-proposals` or
            `--max-candidates` and may lack some detections.
    """
    check_form(metadata)
    results = results_from_padded(outputs)
    check_caps(metadata, outputs, results)
    return results


def check_form(metadata: Metadata) -> None:
    """Refuse (ModelFileError) the first of two graphs, whose outputs are no detections."""
    if metadata.form == 'proposals':
        raise ModelFileError(
            'this file of form proposals gives no detections: feed its outputs, by their names, to the file '
            'of form regions of the same model'
        )


def check_caps(metadata: Metadata, outputs: Arrays, results: Sequence[Scored]) -> None:
    """Refuse (ModelFileError) results of a file with constant shapes that may lack some, naming the limit."""
    check_all_seen(metadata, outputs, 'max_proposals', 'proposal_candidates')
    check_cap(metadata, outputs, results)
