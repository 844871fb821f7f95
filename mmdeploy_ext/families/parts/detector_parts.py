"""Name of 0.2 for `families.common.detector_parts`."""

from mmdeploy_ext.families.common.detector_parts import *  # noqa: F403
