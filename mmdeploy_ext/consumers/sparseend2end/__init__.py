"""SparseEnd2End."""
