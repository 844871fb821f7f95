"""The frozen libraries on today's PyTorch: patches, operators, checkpoints, models."""
