"""What takes long to import, for processes that are forked from one that has it."""

from mmdeploy_ext.upstream import compat

compat.apply()

import mmdet.apis  # noqa: E402, F401

import mmdeploy_ext.families.mmdet_plugin  # noqa: E402, F401
