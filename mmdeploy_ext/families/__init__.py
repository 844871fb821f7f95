"""Base classes of model families, the catalogue of families, and a folder for each."""
