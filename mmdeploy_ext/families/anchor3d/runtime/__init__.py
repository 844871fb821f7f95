"""LiDAR detectors with anchors without PyTorch: from a sweep to boxes."""
