"""Detectors of queries with regions without PyTorch."""
