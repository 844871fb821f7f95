"""StreamPETR: camera-only 3D detection with a temporal memory."""

from projects.mmdet3d_plugin.streampetr import (  # noqa: F401
    assigners,
    coder,
    detector,
    family,
    focal_head,
    head,
    transformer,
    warmup,
)
