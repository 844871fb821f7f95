"""Refusals of files that give no detections, or whose results may lack some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.detections import check_all_seen, check_cap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Scored


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
