"""StreamPETR: options of exports. No torch."""

from mmdeploy_ext.families.parts.options import STREAM_OPTIONS

OPTIONS = STREAM_OPTIONS
"""Options of the family."""
