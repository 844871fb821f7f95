"""Detectors of queries with masks without PyTorch."""
