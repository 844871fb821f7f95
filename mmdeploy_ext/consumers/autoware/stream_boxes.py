"""StreamPETR's outputs to objects, as camera_streampetr publishes them. Needs numpy only.

Source: autoware_universe 5e12a711, autoware_camera_streampetr, lib/postprocess/postprocess_kernel.cu:47-112,
lib/network/network.cpp:52-78, config/camera_streampetr.param.yaml (formulas and defaults, no code).

Glossary: K classes, P columns.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from mmdeploy_ext.consumers.autoware.boxes import Objects, suppressed
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.parts.runtime.scores import sigmoid
from mmdeploy_ext.runtime.detections3d import in_range

SURE = 8.0
"""Logits further from 0 are taken for 1 and 0."""


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What decides which boxes are published; the last two are as those of `settings.Settings`.

    Attributes:
        class_names: K, in Autoware's words; of the manifest.
        limits: detection_range, metres: lower, then upper; of the manifest.
        confidence: (K,) scores have to be above; of the node's own file, as are those below.
        yaw_norms: (K,) least length of (sine, cosine).
    """

    class_names: tuple[str, ...]
    limits: tuple[float, ...]
    confidence: tuple[float, ...]
    yaw_norms: tuple[float, ...]
    iou: float = 0.5
    iou_search_m: float = 10.0
    circle_m: ClassVar[float] = 0.0
    """There is no suppression by distance."""

    def __post_init__(self) -> None:
        """Refuse thresholds that are not one for each class: ModelFileError."""
        for name in ('confidence', 'yaw_norms'):
            if len(getattr(self, name)) != len(self.class_names):
                raise ModelFileError(
                    f'{name}: {len(getattr(self, name))} numbers for {len(self.class_names)} classes; the '
                    f"node's own parameter file has to have one for each"
                )


def objects_of(scores: np.ndarray, boxes: np.ndarray, settings: StreamSettings) -> Objects:
    """Return what the node publishes of one frame, best first; it knows no velocities.

    Scores are (1, K, P) logits, boxes (1, 10, P): x, y, z of the centre in metres, logarithms of length,
    width, height in m, sine and cosine of the yaw, velocities.
    """
    logits, codes = scores[0].astype(np.float32), boxes[0].astype(np.float32)
    each = np.where(logits > SURE, np.float32(1), np.where(logits < -SURE, np.float32(0), sigmoid(logits)))
    labels, best = each.argmax(0), each.max(0)
    good = in_range(codes.T, settings.limits) & (best > np.float32(settings.confidence)[labels])
    good &= np.hypot(codes[6], codes[7]) >= np.float32(settings.yaw_norms)[labels]
    found = Objects(
        places=codes[:3].T,
        sizes=np.exp(codes[3:6]).T,
        yaws=np.arctan2(codes[6], codes[7]),
        twists=np.zeros((codes.shape[1], 2), np.float32),
        scores=best,
        labels=labels,
    )
    return suppressed(found[good].best_first(), settings)
