"""Two-stage detectors: proposals, regions, heads."""
