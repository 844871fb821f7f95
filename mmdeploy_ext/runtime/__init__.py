"""What a user ships: numpy pre- and post-processing and sessions. Imports neither torch nor mmcv."""
