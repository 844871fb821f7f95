"""YOLACT: registers its family; mmdet's own detector and heads are used as they are."""

from projects.mmdet_plugin.yolact import family  # noqa: F401
