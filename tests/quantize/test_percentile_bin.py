"""The bin that a percentile chooses."""

import numpy as np

from mmdeploy_ext.quantize.calibrators import make_calibrator


def test_a_percentile_is_the_lower_edge_of_the_bin_that_reaches_it():
    calibrator = make_calibrator('percentile', 90.0)
    values = np.linspace(0, 1, 1001, dtype=np.float32)[1:]
    calibrator.collect(values)
    width = 1 / len(calibrator.counts)
    below = [(values <= edge).mean() for edge in calibrator.edges]
    expected = calibrator.edges[np.searchsorted(below, 0.9) - 1]
    assert abs(calibrator.amax() - expected) < width / 2
