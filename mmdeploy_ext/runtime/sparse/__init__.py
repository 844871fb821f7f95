"""Sparse convolutions in numpy and numba."""
