"""INT8: calibration, ranges in a file that people can edit, and what quantisation does to the numbers."""
