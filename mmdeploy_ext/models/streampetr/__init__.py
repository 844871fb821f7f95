"""StreamPETR: camera-only 3D detection with a temporal memory."""

from mmdeploy_ext.models.streampetr import (  # noqa: F401
    assigners,
    coder,
    detector,
    focal_head,
    head,
    transformer,
    warmup,
)
