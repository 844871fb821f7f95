"""The data-set loop of all engines, and metrics."""
