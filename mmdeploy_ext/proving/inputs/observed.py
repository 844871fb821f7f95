"""Inputs of two runs of a model of pictures, for lint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.detector import prepare_fixed
from mmdeploy_ext.proving.inputs.pictures import other_view

if TYPE_CHECKING:
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.options import Options

LARGER = 128
"""Pixels by which the second picture is higher; a multiple of every part's divisor."""


def observed_inputs(
    detector: Detector, options: Options, image_bgr: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Inputs of two runs of a model of pictures, by name, always with `border`.

    `border` (B, 2) are pixels of padding above and left. `image_bgr` is (h, w, 3) uint8.
    """
    family, runs = detector.family, []
    reference = family.reference(detector.model)
    larger = LARGER if options.dynamic else 0
    for view, extra in ((image_bgr, 0), (other_view(image_bgr), larger)):
        size = options.height + extra, options.width + 2 * extra
        image = prepare_fixed(detector.rule, view, *size)
        feeds = family.feeds([image], rescale=True)
        feeds.setdefault('border', np.zeros((1, 2), np.float32))  # left out of feeds where it is zero
        runs.append(feeds | reference.inner_inputs(feeds, options.form))
    return runs
