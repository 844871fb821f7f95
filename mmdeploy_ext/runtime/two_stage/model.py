"""Two-stage detectors without PyTorch: a `full` graph does all but taking the padding away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.runtime.detections import candidates_lost, check_cap, results_from_padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Detections, Scored

RUNNERS = {'full': 'tools/onnx/onnx_with_postprocess.py'}


def detections(
    metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[Detections]:
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
    """Refuse the first of two graphs, which gives no detections.

    Raises:
        ModelFileError: says what to do with its outputs.
    """
    if metadata.form == 'proposals':
        raise ModelFileError(
            'this file of form proposals gives no detections: feed its outputs, by their names, to the file '
            'of form regions of the same model'
        )


def check_caps(metadata: Metadata, outputs: Mapping[str, np.ndarray], found: Sequence[Scored]) -> None:
    """Refuse results of a file with constant shapes that may lack some; says which limit would do.

    Raises:
        ModelFileError: proposals, or candidates of the results, were cut off.
    """
    cap = metadata.options.get('max_proposals', 0)
    most = int(np.max(outputs['proposal_candidates'])) if cap else 0
    if most > cap:
        raise candidates_lost(most, cap, '--max-proposals')
    check_cap(metadata, outputs, found)
