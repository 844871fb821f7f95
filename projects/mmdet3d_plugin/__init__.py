"""The 3D families, as an mmdet3d plugin (`plugin=True` with `plugin_dir`, or `custom_imports`)."""

from mmdeploy_ext.families import mmdet3d_plugin  # noqa: F401
