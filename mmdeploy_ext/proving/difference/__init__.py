"""The first tensor where a file leaves PyTorch: records of PyTorch for the walk of `graphs/diff`."""
