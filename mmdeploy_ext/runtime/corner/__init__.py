"""Detectors of corners without PyTorch."""
