"""What takes long to import, for processes that are forked from one that has it."""

from mmdeploy_ext.stack import compat

compat.apply()

import mmdet.apis  # noqa: E402, F401

import projects.mmdet_plugin  # noqa: E402, F401
