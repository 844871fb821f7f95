"""Sparse convolution modules traced to sparse graphs."""
