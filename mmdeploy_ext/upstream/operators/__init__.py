"""Operators that PyTorch does not export."""
