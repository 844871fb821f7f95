"""Base classes of model families, and the registry."""
