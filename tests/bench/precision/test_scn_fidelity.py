"""The simulation of int8 and fp16, against integers, and what it says about planted faults."""

import dataclasses

import numpy as np
import pytest

import toy_sparse
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.bench.precision.damage import Difference
from mmdeploy_ext.bench.precision.fidelity import Simulation, fidelity
from mmdeploy_ext.bench.precision.sparse_calibration import calibrate_sweeps
from mmdeploy_ext.runtime.sparse import engine

SWEEPS = [toy_sparse.voxels(toy_sparse.SMALL_GRID, 1000, seed) for seed in range(2)]


@pytest.fixture(scope='module')
def graph():
    return toy_sparse.small()


@pytest.fixture(scope='module')
def ranges(graph):
    return calibrate_sweeps(graph, SWEEPS)


def with_range(ranges, name, factor):
    node = dataclasses.replace(ranges.nodes[name], input_amax=ranges.nodes[name].input_amax * factor)
    return dataclasses.replace(ranges, nodes={**ranges.nodes, name: node})


def test_a_simulated_layer_equals_integer_arithmetic(graph, ranges):
    """int8 codes, sums of their products in whole numbers, then the two scales: what an engine computes."""
    features, coordinates = SWEEPS[0]
    simulation = Simulation(graph, ranges)
    sweep = simulation.prepare(features, coordinates)
    node = toy_sparse.node(graph, 'conv0')
    step = ranges.input_amax('conv0') / 127
    steps = ranges.weight_amax('conv0').astype(np.float64) / 127
    codes = np.clip(np.rint(features / step), -127, 127)
    stored = node.weight.astype(np.float16).astype(np.float64)
    kernel = np.clip(np.rint(stored / steps[:, None, None, None, None]), -127, 127)
    plain = dataclasses.replace(node, bias=None, activation='None')
    bare = dataclasses.replace(graph, nodes=(plain, *graph.nodes[1:]))
    outputs = {}
    engine.run(
        bare,
        coordinates,
        features,
        observe=outputs.__setitem__,
        transform=lambda layer, inputs, weight: (
            ((codes.astype(np.float32),), kernel) if layer is plain else (inputs, weight)
        ),
    )
    sums = outputs['conv0']
    assert (sums == np.rint(sums)).all()
    expected = np.maximum(sums * step * steps + node.bias, 0)
    found = simulation.tensors(sweep, {'conv0'})['1']
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_a_layers_own_error_is_that_of_the_layer_alone(graph, ranges):
    result = fidelity(graph, ranges, SWEEPS[:1], advise=False)
    rows = {row.name: row for row in result.rows}
    assert rows['conv0'].local.to_json() == rows['conv0'].int8.to_json()  # nothing before it
    for row in result.rows[1:]:
        assert 0 < row.local.error < row.int8.error
    features, coordinates = SWEEPS[0]
    outputs, rounded = {}, {}
    simulation = Simulation(graph, ranges)
    engine.run(graph, coordinates, features, observe=outputs.__setitem__)

    def only_conv2(node, inputs, weight):
        return simulation.rounded(node, inputs, {'conv2'}) if node.name == 'conv2' else (inputs, weight)

    engine.run(graph, coordinates, features, observe=rounded.__setitem__, transform=only_conv2)
    expected = np.linalg.norm(rounded['conv2'] - outputs['conv2']) / np.linalg.norm(outputs['conv2'])
    assert rows['conv2'].local.error == pytest.approx(expected, rel=1e-5)


def test_fp16_is_far_closer_than_int8(graph, ranges):
    result = fidelity(graph, ranges, SWEEPS, advise=False)
    assert result.fp16.error < 1e-3 < result.int8.error < 0.1
    assert result.fp16.cosine > 0.999999
    assert result.sweeps == 2


@pytest.mark.parametrize('name', ['conv1', 'add0'])
def test_a_layer_with_a_bad_range_comes_first_and_advice_keeps_it_in_fp16(graph, ranges, name):
    bad = with_range(ranges, name, 0.05)
    result = fidelity(graph, bad, SWEEPS, target=0.999)
    assert result.worst()[0].name == name
    assert result.advice() == (name,)
    assert result.fp16_layers[0][1] >= 0.999 > result.int8.cosine
    clipped = {row.name: row.clipped for row in result.rows}
    assert clipped[name] > 0.05 > max(share for other, share in clipped.items() if other != name)


def test_advice_is_the_layers_that_the_output_needs_and_no_other(graph, ranges):
    bad, target = with_range(with_range(ranges, 'conv1', 0.05), 'add0', 0.2), 0.999
    advised = fidelity(graph, bad, SWEEPS[:1], target=target).advice()
    simulation = Simulation(graph, bad)
    sweep = simulation.prepare(*SWEEPS[0])
    reference = simulation.output(sweep, (), 'fp32')

    def cosine(fp16):
        int8 = {*simulation.names} - {*fp16}
        return Difference().add(reference, simulation.output(sweep, int8, 'fp16')).cosine

    assert cosine(advised) >= target and len(advised) > 1
    assert all(cosine({*advised} - {name}) < target for name in advised)
    unreachable = fidelity(graph, bad, SWEEPS[:1], target=1.5)
    assert unreachable.fp16_layers and 'not reached' in unreachable.advice_text()


def with_precision(graph, **precisions):
    nodes = [
        dataclasses.replace(node, precision=precisions[node.name]) if node.name in precisions else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def test_layers_that_the_graph_keeps_in_fp16_are_not_int8(graph, ranges):
    bad = with_range(ranges, 'conv1', 0.05)
    kept = fidelity(with_precision(graph, conv1='fp16', conv0='int8'), bad, SWEEPS, target=0.999)
    assert kept.int8.cosine > 0.999
    assert kept.advice() == ()
    row = next(row for row in kept.rows if row.name == 'conv1')
    assert row.output is None
    assert row.local.error > 0.5  # what int8 would do to it


def test_sweeps_without_voxels_are_refused(graph, ranges):
    with pytest.raises(DataError, match='voxel'):
        fidelity(graph, ranges, [(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.int32))])


def test_outputs_of_another_size_are_not_compared():
    with pytest.raises(ValueError, match='1 values, expected 3'):
        Difference().add(np.ones(3), np.ones(1))
