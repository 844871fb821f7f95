"""ATSS: registers its family; mmdet's own detector and head are used as they are."""

from projects.mmdet_plugin.atss import family  # noqa: F401
