"""The 2D families of mm2onnx, as an mmdet plugin (`custom_imports` or `plugin_dir`)."""

from mmdeploy_ext.families import mmdet_plugin  # noqa: F401
