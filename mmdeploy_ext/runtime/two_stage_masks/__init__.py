"""Two-stage detectors with masks without PyTorch: from masks in the frame of boxes to masks of images."""
