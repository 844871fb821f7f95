"""Detectors of queries: registers their family; mmdet's own detectors and heads are used as they are."""

from projects.mmdet_plugin.query import family  # noqa: F401
