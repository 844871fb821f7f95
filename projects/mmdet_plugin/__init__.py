"""Models of 2D, as an mmdet plugin (`custom_imports` or `plugin_dir`)."""

import mmdeploy_ext.upstream.models.mmdet  # noqa: F401
