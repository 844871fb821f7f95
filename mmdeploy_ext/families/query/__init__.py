"""Detectors of queries: their families and graphs; mmdet's own detectors and heads are used as they are."""
