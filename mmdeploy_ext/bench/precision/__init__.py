"""The search for the precision of a file, by results."""
