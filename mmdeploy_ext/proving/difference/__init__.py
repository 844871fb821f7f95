"""The first tensor in which a file differs from PyTorch, or from another file."""
