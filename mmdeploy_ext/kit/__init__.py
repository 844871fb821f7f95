"""Kits: a file, inputs and PyTorch's own results in one folder, for the engine that will run the file."""
