"""The bin that a percentile chooses."""

import numpy as np
import pytest

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.int8.calibrators import make_calibrator


def test_a_percentile_is_the_lower_edge_of_the_bin_that_reaches_it():
    calibrator = make_calibrator('percentile', 90.0)
    values = np.linspace(0, 1, 1001, dtype=np.float32)[1:]
    calibrator.collect(values)
    width = 1 / len(calibrator.counts)
    below = [(values <= edge).mean() for edge in calibrator.edges]
    expected = calibrator.edges[np.searchsorted(below, 0.9) - 1]
    assert abs(calibrator.amax() - expected) < width / 2


@pytest.mark.parametrize('asked', [('median',), ('percentile', 0), ('percentile', 100.5)])
def test_a_method_or_percentile_that_is_none_is_refused(asked):
    with pytest.raises(UsageError, match=str(asked[-1])):
        make_calibrator(*asked)
