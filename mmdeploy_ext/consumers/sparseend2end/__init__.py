"""SparseEnd2End: Sparse4D as a backbone and two heads, of first frames and of the others."""
