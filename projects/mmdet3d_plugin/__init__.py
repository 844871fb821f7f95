"""Models and data sets of 3D, as an mmdet3d plugin (`plugin=True` with `plugin_dir`, or `custom_imports`)."""

import mmdeploy_ext.upstream.models.mmdet3d  # noqa: F401
