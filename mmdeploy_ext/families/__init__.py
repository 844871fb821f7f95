"""Base classes of model families, the catalogue of those of this package, and a folder for each."""
