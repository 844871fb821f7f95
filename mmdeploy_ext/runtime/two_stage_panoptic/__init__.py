"""Two-stage detectors that give panoptic maps, without PyTorch."""
