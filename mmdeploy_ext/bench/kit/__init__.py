"""Kits: a file, inputs and PyTorch's results in one folder, for the engine that will run the file."""
