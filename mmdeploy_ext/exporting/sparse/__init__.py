"""Sparse graphs: traced, folded, in libspconv's dialect and in standard operators."""
