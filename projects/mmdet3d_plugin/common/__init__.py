"""Backbones and necks that several camera families share."""

from projects.mmdet3d_plugin.common import cp_fpn, vovnet  # noqa: F401
