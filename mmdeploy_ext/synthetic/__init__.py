"""Generated data sets in the real formats: no download, made from a seed in seconds."""
