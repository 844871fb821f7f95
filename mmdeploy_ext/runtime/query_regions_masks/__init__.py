"""Detectors of queries with regions and masks without PyTorch."""
