"""INT8: calibration, ranges in an editable file, and the effect of quantisation on the values."""

METHODS = ('mse', 'percentile', 'max')
"""How ranges of sparse graphs are found, the default first."""
DENSE_METHODS = ('minmax', 'percentile', 'mse')
"""The same of dense graphs."""
PERCENTILE = 99.99
"""Of |x|, in percent, for the method of that name."""
