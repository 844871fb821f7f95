"""Two-stage detectors: proposals, regions, heads."""

from projects.mmdet_plugin.two_stage import family, wrappers  # noqa: F401
