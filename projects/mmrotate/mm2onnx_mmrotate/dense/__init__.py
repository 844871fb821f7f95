"""One-stage detectors of rotated boxes; imports nothing."""
