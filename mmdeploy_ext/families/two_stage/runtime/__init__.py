"""Two-stage detectors without PyTorch."""
