"""Full-size node lists, initializer bytes included, against the reference exporter's."""

import dataclasses
import functools

import numpy as np
import pytest

import scn_goldens
import scn_nets
import toy_seeded as seeded
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.precision import apply_precision, fp16_ends
from mmdeploy_ext.exporting.sparse.ranges import NodeRange, Ranges
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution

CENTERPOINT_FP16 = {
    'conv_input.0': 'fp16',
    'conv1.0.conv?': 'fp16',
    'conv1.0': ('fp16', 'int8'),
    'extra_conv.0': ('int8', 'fp16'),
}


@functools.cache
def bevfusion():
    model = scn_nets.bevfusion()
    seeded.fill_sparse_module(model, scn_nets.BEVFUSION_PREFIX)
    return model


@functools.cache
def traced(name):
    if name == 'bevfusion':
        return trace(bevfusion(), order='xyz', spatial_shape=(1440, 1440, 41), in_channels=5)
    model = scn_nets.centerpoint()
    seeded.fill_sparse_module(model, scn_nets.CENTERPOINT_PREFIX)
    return trace(model, order='zyx', spatial_shape=(41, 1440, 1440), in_channels=5)


def assert_equal_but_ir_version(graph, name):
    expected, got = scn_goldens.node_list(name), libspconv.to_node_list(libspconv.to_onnx(graph))
    for listed in (expected, got):
        listed['meta'].pop('ir_version')
    assert list(got) == list(expected)
    for one, other in zip(
        got['nodes'] + got['initializers'], expected['nodes'] + expected['initializers'], strict=True
    ):
        assert one == other
        assert list(one.get('attributes', ())) == list(other.get('attributes', ()))  # sorted, as stored
    assert got == expected


def seeded_ranges(graph, prefix, half=False):
    """Ranges of a folded graph by the goldens' rule."""
    return ranges_of(graph, seeded.amax(graph, prefix, half))


def ranges_of(graph, amax):
    nodes = {}
    for node in graph.nodes:
        if not isinstance(node, SparseConvolution | Add):
            continue
        path = f'{node.module}.quant_add' if isinstance(node, Add) else node.module
        per_channel = amax.get(f'{path}._weight_quantizer._amax')
        nodes[node.name] = NodeRange(
            node.module,
            float(amax[f'{path}._input_quantizer._amax']),
            None if per_channel is None else tuple(map(float, per_channel)),
        )
    return Ranges(nodes, 'seeded', 'FILL.md', 0, '')


@pytest.mark.parametrize(
    ('kind', 'precision', 'order'), [('plain', 'fp16', 'zyx'), ('plain_lean', 'fp32', 'xyz')]
)
def test_bevfusion_equals_the_reference(kind, precision, order):
    assert_equal_but_ir_version(
        reorder(fold(traced('bevfusion'), precision), order), f'bevfusion.{kind}.{order}'
    )


@pytest.mark.matrix
def test_a_real_sweep_leaves_its_row_counts_in_the_file():
    features, coordinates = scn_goldens.voxels('input_real_bevfusion')
    graph = trace(
        bevfusion(), coordinates, features, order='xyz', spatial_shape=(1440, 1440, 41), in_channels=5
    )
    assert graph.input_rows == 17748
    assert_equal_but_ir_version(fold(graph, 'fp16'), 'bevfusion.plain_real.xyz')


@pytest.mark.parametrize(('kind', 'order'), [('int8', 'xyz'), ('int8', 'zyx'), ('fp16attr', 'xyz')])
def test_bevfusion_with_precisions_equals_the_reference(kind, order):
    graph = fold(traced('bevfusion'), 'fp32')
    ranges = seeded_ranges(graph, scn_nets.BEVFUSION_PREFIX, half=True)
    precision = ('int8', fp16_ends(graph), ranges) if kind == 'int8' else ('fp16', {}, ranges)
    graph = apply_precision(reorder(graph, order), *precision)
    assert_equal_but_ir_version(graph, f'bevfusion.{kind}.{order}')


def test_centerpoint_equals_the_reference():
    assert_equal_but_ir_version(fold(traced('centerpoint'), 'fp16'), 'centerpoint.plain.zyx')


def test_centerpoint_int8_equals_the_reference():
    """The reference calibrates conv_input unfolded, and folds it in fp16 only after."""
    graph, plain = fold(traced('centerpoint'), 'fp32'), traced('centerpoint')
    amax = seeded.amax(graph, scn_nets.CENTERPOINT_PREFIX, drawn_as=seeded.centerpoint_ptq_path)
    first = plain.convolutions()[0]
    amax['conv_input.0._weight_quantizer._amax'] = np.abs(first.weight).max((1, 2, 3, 4))
    half = fold(plain, 'fp16').convolutions()[0]
    graph = with_first(graph, half.weight, half.bias)
    assert_equal_but_ir_version(
        apply_precision(graph, 'int8', CENTERPOINT_FP16, ranges_of(graph, amax)), 'centerpoint.int8.zyx'
    )


def with_first(graph, weight, bias):
    first = dataclasses.replace(graph.nodes[0], weight=weight, bias=bias)
    return dataclasses.replace(graph, nodes=(first, *graph.nodes[1:]))


@pytest.mark.parametrize(
    ('name', 'build', 'prefix'),
    [
        ('bevfusion', scn_nets.bevfusion, scn_nets.BEVFUSION_PREFIX),
        ('centerpoint_det3d', scn_nets.centerpoint, scn_nets.CENTERPOINT_PREFIX),
    ],
)
def test_seeded_weights_are_the_stored_ones(name, build, prefix):
    net = scn_goldens.state_dict_net(name)
    state = seeded.fill_sparse_module(build(), prefix)
    stored = {key: tuple(shape) for key, shape in net['keys_spconv1_layout'].items()}
    assert {prefix + key: array.shape for key, array in state.items()} == stored
    assert seeded.digest(state) == net['fill_sha256']


def test_seeded_voxels_are_the_stored_ones():
    features, coordinates = seeded.voxels()
    stored = scn_goldens.voxels('input_synth')
    assert np.array_equal(features, stored[0])
    assert np.array_equal(coordinates, stored[1])


def test_calibrated_int8_equals_the_reference_with_its_ranges():
    expected = scn_goldens.node_list('bevfusion.int8_calib.xyz')
    nodes = {}
    for node in expected['nodes']:
        values = {name: attribute['value'] for name, attribute in node['attributes'].items()}
        if 'precision' in values:
            shared = values.get('input_dynamic_range', values.get('input0_dynamic_range'))
            nodes[node['name']] = NodeRange(
                '', shared, tuple(values.get('weight_dynamic_ranges', ())) or None
            )
    graph = fold(traced('bevfusion'), 'fp32')
    ranges = Ranges(nodes, 'mse', 'golden', 1, '')
    assert_equal_but_ir_version(
        apply_precision(graph, 'int8', fp16_ends(graph), ranges), 'bevfusion.int8_calib.xyz'
    )
    own = seeded_ranges(graph, scn_nets.BEVFUSION_PREFIX, half=True)
    assert list(own.nodes) == list(nodes)
    for name, entry in nodes.items():  # its weight ranges are the seeded rule's, to the bit
        assert own.nodes[name].weight_amax == entry.weight_amax
