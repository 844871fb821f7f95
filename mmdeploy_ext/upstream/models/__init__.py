"""Models that no installed library has; `catalogue` says when they are registered."""
