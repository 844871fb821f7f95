"""The 2D families of mm2onnx, as an mmdet plugin (`custom_imports` or `plugin_dir`)."""

from mmdeploy_ext.families.base import import_later
from projects.mmdet_plugin import corner, dense, query, rtdetr, rtmdet, solo, two_stage, yolact  # noqa: F401

import_later('projects.mmdet3d_plugin')  # for configs of mmdet3d itself, which do not name it
