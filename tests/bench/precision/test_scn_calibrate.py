"""Calibration of sparse graphs: what each quantiser sees, the reference's own ranges, and what is refused."""

import numpy as np
import pytest

import scn_goldens
import toy_sparse
from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.bench.precision.sparse_calibration import calibrate_sweeps, kernels_before_folding
from mmdeploy_ext.exporting.int8.calibrators import HistogramCalibrator
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution

SWEEPS = [toy_sparse.voxels(toy_sparse.SMALL_GRID, 60, seed) for seed in range(3)]


@pytest.fixture
def graph():
    return toy_sparse.small()


def seen(graph, sweeps):
    """Node name -> the tensors that reach it, in order, from the interpreter's outputs alone."""
    inputs = {node.name: [] for node in graph.nodes if isinstance(node, SparseConvolution | Add)}
    for features, coordinates in sweeps:
        outputs = {}
        engine.run(graph, coordinates, features, observe=outputs.__setitem__)
        tensors = {node.output: outputs[node.name] for node in graph.nodes} | {'0': features}
        for name, values in inputs.items():
            values.extend(tensors[tensor] for tensor in toy_sparse.node(graph, name).inputs)
    return inputs


def test_max_ranges_are_the_largest_inputs_of_all_sweeps(graph):
    ranges = calibrate_sweeps(graph, SWEEPS, 'max')
    for name, tensors in seen(graph, SWEEPS).items():
        assert ranges.input_amax(name) == max(np.abs(values).max() for values in tensors)
    ranges.check(graph)
    assert (ranges.calibrator, ranges.batches) == ('max', 3)


def test_both_inputs_of_an_addition_go_into_one_histogram_the_convolutions_first(graph):
    ranges = calibrate_sweeps(graph, SWEEPS, 'mse')
    for name, tensors in seen(graph, SWEEPS).items():
        histogram = HistogramCalibrator('mse')
        for values in tensors:
            histogram.collect(values)
        assert ranges.input_amax(name) == np.float32(histogram.amax())


def test_ranges_can_be_of_the_kernel_before_folding():
    traced = toy_sparse.bevfusion(folded=False)
    graph = fold(traced)
    kernels = kernels_before_folding(traced, graph, ['conv_input.0'])
    features, coordinates = toy_sparse.voxels(toy_sparse.SMALL_GRID, 80)
    inside = coordinates[:, 2] < graph.spatial_shape[1]
    sweep = features[inside], coordinates[inside]
    plain = calibrate_sweeps(graph, [sweep], 'max')
    ranges = calibrate_sweeps(graph, [sweep], 'max', unfolded=kernels)
    np.testing.assert_array_equal(
        ranges.weight_amax('conv0'), np.abs(traced.convolutions()[0].weight).max((1, 2, 3, 4))
    )
    assert (ranges.weight_amax('conv0') != plain.weight_amax('conv0')).any()
    assert ranges.nodes['conv1'] == plain.nodes['conv1']
    ranges.check(graph)
    with pytest.raises(UsageError, match=r'conv9'):
        kernels_before_folding(traced, graph, ['conv9'])


@pytest.mark.matrix
def test_ranges_equal_the_references_on_its_real_sweep():
    """Upstream's calibrator summed in another order: a histogram's bin is what may differ."""
    features, coordinates = scn_goldens.voxels('input_real_bevfusion')
    listed = scn_goldens.node_list('bevfusion.int8_calib.xyz')
    ranges = calibrate_sweeps(toy_sparse.full(), [(features, coordinates)], 'mse').half()
    nodes = {node['name']: node['attributes'] for node in listed['nodes']}
    equal = 0
    for name, found in ranges.nodes.items():
        attributes = nodes[name]
        expected = attributes.get('input_dynamic_range', attributes.get('input0_dynamic_range'))['value']
        assert found.input_amax == pytest.approx(expected, rel=2e-2), name
        equal += found.input_amax == expected
        if found.weight_amax is not None:
            assert list(found.weight_amax) == attributes['weight_dynamic_ranges']['value'], name
    assert equal >= 25  # of 29; 28 were, bit for bit


def test_additions_can_have_a_method_of_their_own(graph):
    mixed = calibrate_sweeps(graph, SWEEPS, 'percentile', percentile=95, add_method='max')
    most = calibrate_sweeps(graph, SWEEPS, 'max')
    assert mixed.input_amax('add0') == most.input_amax('add0')
    assert mixed.input_amax('conv1') < most.input_amax('conv1')
    assert mixed.calibrator == 'percentile 95 (additions: max)'


@pytest.mark.parametrize(('factor', 'words'), [(0, 'conv0'), (3e38, 'sweep 1 of sweeps: .*conv1')])
def test_a_layer_without_a_range_is_named(graph, factor, words):
    _, coordinates = SWEEPS[0]
    features = np.full((len(coordinates), 5), factor, np.float32)
    with pytest.raises(DataError, match=words):
        calibrate_sweeps(graph, [(features, coordinates)], 'max')
