"""Two-stage detectors: proposals, regions, heads."""

from projects.mmdet_plugin.two_stage import family  # noqa: F401
