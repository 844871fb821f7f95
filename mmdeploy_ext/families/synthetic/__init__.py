"""Generated data sets in the real formats, made from a seed in seconds."""
