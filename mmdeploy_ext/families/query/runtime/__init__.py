"""Detectors of queries without PyTorch."""
