"""CornerNet and CentripetalNet: registers their family; mmdet's own detector and heads are used."""

from projects.mmdet_plugin.corner import family  # noqa: F401
