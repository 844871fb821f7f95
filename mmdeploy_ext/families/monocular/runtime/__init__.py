"""Monocular detectors without PyTorch: boxes of the outputs of a file, in numpy."""
