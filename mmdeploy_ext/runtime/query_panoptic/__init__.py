"""Detectors of queries that give panoptic maps, without PyTorch."""
