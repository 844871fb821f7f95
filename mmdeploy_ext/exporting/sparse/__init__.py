"""Tracing sparse convolution modules."""
