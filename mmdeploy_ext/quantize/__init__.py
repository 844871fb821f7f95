"""INT8: calibration, ranges in a file that people can edit, and what quantisation does to the numbers."""

METHODS = ('mse', 'percentile', 'max')
"""How ranges of sparse graphs are found, the default first."""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""The same of dense graphs."""
PERCENTILE = 99.99
"""Of |x|, in percent, for the method of that name."""
