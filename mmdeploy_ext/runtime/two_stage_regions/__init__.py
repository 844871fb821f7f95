"""Two-stage detectors that are given their proposals, without torch."""
