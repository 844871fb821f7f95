"""Detectors of queries: registers their family; mmdet's own detectors and heads are used as they are."""
