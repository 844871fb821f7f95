"""The 2D families of mm2onnx, as an mmdet plugin (`custom_imports` or `plugin_dir`)."""

from projects.mmdet_plugin import corner, dense, query, rtdetr, solo, two_stage, yolact  # noqa: F401
