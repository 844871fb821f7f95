"""StreamPETR as an mmdet3d plugin (`plugin=True, plugin_dir='projects/mmdet3d_plugin/'` or `custom_imports`)."""

from projects.mmdet3d_plugin import common, datasets, streampetr  # noqa: F401
