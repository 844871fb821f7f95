"""The data-set loops of both engines, and metrics."""
