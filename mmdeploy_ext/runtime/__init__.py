"""The deployed part: numpy pre- and post-processing, and sessions. Imports neither torch nor mmcv."""
