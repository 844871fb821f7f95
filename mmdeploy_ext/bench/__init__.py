"""Tools for finished files: precision, speed, kits, lint, kinds of samples."""
