"""Name of 0.2 for `families.common.image_graphs`."""

from mmdeploy_ext.families.common.image_graphs import *  # noqa: F403
