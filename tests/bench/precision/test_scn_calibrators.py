"""Calibrators against slow, obvious references."""

import numpy as np
import pytest

from mmdeploy_ext.exporting.int8.calibrators import (
    BINS,
    HistogramCalibrator,
    fake_half,
    fake_quantise,
    fake_quantise_kernel,
    make_calibrator,
    weight_amax,
)


def activations(seed=0, size=20000):
    """After a ReLU: half zeros, a long tail."""
    return np.maximum(np.random.default_rng(seed).standard_normal(size) ** 3, 0).astype(np.float32)


def slow_fake_quantise(value, amax):
    code = min(max(round(float(value) * 127 / amax), -127), 127)
    return code * amax / 127


def slow_least_error(values, bins):
    """One candidate and one bin after the other, as section 6 of ALGORITHM.md words it."""
    counts, edges = np.histogram(np.abs(values), bins, (0, np.abs(values).max()))
    centres = (edges[1:] + edges[:-1]) / 2
    filled = [(centre, count) for centre, count in zip(centres, counts, strict=True) if count]
    return {
        amax: sum(count * (slow_fake_quantise(c, amax) - c) ** 2 for c, count in filled)
        for amax in centres[128:]
    }


def test_fake_quantisation_equals_the_slow_one_with_ties_and_clipping():
    amax = 127 / 8
    values = np.array([0, 1 / 16, 3 / 16, -5 / 16, 0.35, 15.875, 15.93, 99, -99, 1e-9, 3.14159], np.float64)
    expected = [slow_fake_quantise(value, amax) for value in values]
    np.testing.assert_allclose(fake_quantise(values, amax), expected, rtol=1e-12, atol=1e-12)
    assert fake_quantise(values.astype(np.float32), amax).dtype == np.float32


def test_a_kernel_is_rounded_per_output_channel():
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3, 5)).astype(np.float32)
    weight[2] *= 100
    rounded = fake_quantise_kernel(weight, np.array(weight_amax(weight)))
    for channel in range(4):
        step = np.abs(weight[channel]).max() / 127
        assert np.abs(rounded[channel] - weight[channel]).max() <= step / 2 * (1 + 1e-5)
        assert len(np.unique(rounded[channel])) <= 255


def test_fp16_rounding_overflows_as_an_engine_does():
    np.testing.assert_array_equal(fake_half(np.float32([1 / 3, 7e4, 1e-9])), [np.float16(1 / 3), np.inf, 0])


def test_the_least_error_is_that_of_the_slow_search():
    values = np.abs(np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
    values[0] = 9
    found = HistogramCalibrator('mse', bins=512)
    found.collect(values)
    errors = slow_least_error(values, 512)
    assert found.amax() == pytest.approx(min(errors, key=errors.get), rel=1e-6)
    assert found.amax() < 8.5  # the outlier is clipped


def test_a_later_tensor_widens_by_whole_bins():
    found = HistogramCalibrator()
    found.collect(activations(0))
    width = found.width
    found.collect(activations(1) * 3)
    assert found.width == width
    assert len(found.counts) > BINS
    assert found.counts.sum() == 40000
    everything = np.concatenate([activations(0), activations(1) * 3])
    expected = np.histogram(everything.astype(np.float64), len(found.counts), (0, found.edges[-1]))[0]
    assert np.abs(found.counts - expected).sum() <= 4  # values on an edge, in fp32
    assert width * (len(found.counts) - 1) < everything.max() <= found.edges[-1] * (1 + 1e-9)


@pytest.mark.parametrize('percentile', [50.0, 99.99])
def test_a_percentile_is_numpys_within_a_bin(percentile):
    values = np.abs(np.random.default_rng(0).standard_normal(50000)).astype(np.float32)
    found = make_calibrator('percentile', percentile)
    found.collect(values)
    assert found.amax() == pytest.approx(np.percentile(values, percentile), abs=2 * values.max() / BINS)
