"""Sparse convolution backbones without torch."""
