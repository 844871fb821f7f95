"""The 3D families, as an mmdet3d plugin (`plugin=True` with `plugin_dir`, or `custom_imports`)."""

from projects.mmdet3d_plugin import (  # noqa: F401
    anchor3d,
    bevfusion,
    centerpoint,
    common,
    datasets,
    sparse_backbone,
    streampetr,
)
