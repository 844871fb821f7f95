"""Models that no installed library has; those of mmdet are registered by this import."""

from mmdeploy_ext.models import dino, rtdetr, rtmdet  # noqa: F401
