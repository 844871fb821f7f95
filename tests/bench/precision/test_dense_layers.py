"""Layers of a dense graph, and INT8 of some of them: small graphs with every case, against float32."""

import copy
import sys
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import (
    DataError,
    EngineError,
    ExportError,
    InferenceError,
    Mm2OnnxError,
    ModelFileError,
    UsageError,
)
from mmdeploy_ext.bench.precision.dense_target import NncfQuantiser, OpenVinoRunner, compare_outputs
from mmdeploy_ext.bench.precision.plan import Planner, check_single
from mmdeploy_ext.cli.quantize_app import build_parser, int8_layers, quantisation_facts
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting.int8.dense import (
    OPERATORS,
    DenseGraph,
    DenseQuantiser,
    finish_model,
    layers_in_int8,
)
from mmdeploy_ext.exporting.precision_plan import KeptResults
from mmdeploy_ext.graphs import run
from toy_engines import parse

SIZE = 16
RNG = np.random.default_rng(0)
KERNELS = {name: RNG.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32) for name in ('a', 'b', 'tower')}
KERNELS['stem'] = RNG.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32)
KERNELS['last'] = RNG.normal(0, 0.4, (4, 8, 1, 1)).astype(np.float32)
PATHS = {
    'stem': 'net/stem',
    'a': 'net/block/a',
    'b': 'net/block/b',
    'tower': 'head/tower',
    'last': 'head/last',
}


def conv(layer, source, target, number=''):
    pad = (KERNELS[layer].shape[2] - 1) // 2
    name = f'{PATHS[layer]}/Conv{number}'
    return helper.make_node('Conv', [source, f'{layer}.w'], [target], name, pads=[pad] * 4)


def residual_model(opset=17, kernels=KERNELS):
    """Stem, a residual block, a tower on two levels with shared weights, sigmoid and a sum over both."""
    nodes = [
        conv('stem', 'input', 'stem'),
        helper.make_node('Relu', ['stem'], ['x'], 'net/relu'),
        conv('a', 'x', 'a'),
        helper.make_node('Relu', ['a'], ['a_relu'], 'net/block/relu'),
        conv('b', 'a_relu', 'b'),
        helper.make_node('Add', ['b', 'x'], ['sum'], 'net/block/add'),
        helper.make_node('Relu', ['sum'], ['p0'], 'net/block/relu_1'),
        helper.make_node('MaxPool', ['p0'], ['p1'], 'net/pool', kernel_shape=[2, 2], strides=[2, 2]),
    ]
    for level in range(2):
        number = f'_{level}' if level else ''
        nodes += [
            conv('tower', f'p{level}', f'tower{level}', number),
            helper.make_node('Add', [f'tower{level}', 'shift'], [f'shifted{level}'], f'head/shift_{level}'),
            helper.make_node('Relu', [f'shifted{level}'], [f't{level}'], f'head/relu_{level}'),
            conv('last', f't{level}', f'logits{level}', number),
            helper.make_node('Sigmoid', [f'logits{level}'], [f'score{level}'], f'postprocess/sigmoid{level}'),
        ]
    constants = [numpy_helper.from_array(value, f'{name}.w') for name, value in kernels.items()]
    constants.append(numpy_helper.from_array(np.full((1, 8, 1, 1), 0.1, np.float32), 'shift'))
    image = helper.make_tensor_value_info('input', TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    shapes = [[1, 4, SIZE >> level, SIZE >> level] for level in range(2)]
    outputs = [
        helper.make_tensor_value_info(f'score{level}', TensorProto.FLOAT, shape)
        for level, shape in enumerate(shapes)
    ]
    graph = helper.make_graph(nodes, 'residual', [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def batches(number=4):
    rng = np.random.default_rng(1)
    return [{'input': rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(number)]


def quantiser(model, **options):
    made = DenseQuantiser(DenseGraph(model))
    made.calibrate(batches(), **options)
    return made


@pytest.fixture(scope='module')
def calibrated():
    return quantiser(residual_model())


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_layers_are_weights_and_the_last_ones_are_those_that_no_other_follows():
    graph = DenseGraph(residual_model())
    assert [layer.name for layer in graph.layers] == list(PATHS.values())
    assert graph.last == ['head/last']
    assert graph.layer('head/last').outputs == ('logits0', 'logits1')
    assert graph.layer('head/tower').nodes == ('head/tower/Conv', 'head/tower/Conv_1')
    assert 'Sigmoid' not in kinds(graph.network), 'what follows the last layers is no part of the network'
    assert [value.name for value in graph.network.graph.output] == ['logits0', 'logits1']


def test_a_plan_rounds_the_inputs_of_its_layers_alone_as_tensorrt_takes_them(calibrated):
    at_inputs = DenseQuantiser(calibrated.graph, outputs=False)
    at_inputs.ranges = calibrated.ranges
    layers = [layer.name for layer in calibrated.graph.layers]
    made = finish_model(calibrated.graph, at_inputs.network(layers[1:]), {})
    onnx.checker.check_model(made, full_check=True)
    assert not find_refusals(made, rtx=False)
    assert find_refusals(finish_model(calibrated.graph, calibrated.network(layers[1:]), {}), rtx=False)
    float_model = residual_model()
    index = {node.name: node for node in made.graph.node}
    for node in float_model.graph.node:
        same = node.op_type != 'Conv' or node.name == 'net/stem/Conv'
        assert (list(index[node.name].input) == list(node.input)) == same, node.name
    expected = run.run(float_model, batches()[0])['score0']
    errors = [
        np.abs(run.run(finish_model(one.graph, one.network(layers), {}), batches()[0])['score0'] - expected)
        for one in (at_inputs, calibrated)
    ]
    assert all(0 < error.mean() < 0.05 for error in errors)
    added = at_inputs.errors(batches(2))
    assert [*added] == layers and all(0 < error < 0.05 for error in added.values())


def test_the_search_returns_layers_by_their_multiplications(calibrated):
    model, graph, in_int8 = residual_model(), calibrated.graph, []
    quantiser = DenseQuantiser(graph, outputs=False)
    quantiser.ranges = calibrated.ranges

    def kept(models):
        nodes = models[graph.path].graph.node
        inputs = {node.name: node.input[1] for node in nodes if node.op_type == 'Conv'}
        in_int8.append({layer.name for layer in graph.layers if 'rounded' in inputs[layer.nodes[0]]})
        return KeptResults(0, 1)

    layers = [layer.name for layer in graph.layers]
    planner = Planner({graph.path: model}, kept, {graph.path: batches(2)}, quantiser=quantiser, layers=layers)
    assert planner.plan(['int8'], 1.0, KeptResults(1, 1)).layers == []
    assert in_int8[0] == {*layers}
    assert not {'head/last', 'net/stem'} & in_int8[1], 'half of the multiplications, not of the errors'
    assert in_int8[1]


def test_the_whole_model_keeps_names_and_comes_near_float32(calibrated):
    model = residual_model()
    layers = [layer.name for layer in calibrated.graph.layers[:-1]]
    made = finish_model(calibrated.graph, calibrated.network(layers), dict(method='minmax'))
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == ['score0', 'score1']
    assert {entry.key: entry.value for entry in made.metadata_props} == {'int8.method': 'minmax'}
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types['last.w'] == TensorProto.FLOAT and 'stem.w' not in types
    assert types['stem.w.int'] == TensorProto.INT8
    assert TensorProto.UINT8 in types.values(), 'activations are uint8'
    scale = next(tensor for tensor in made.graph.initializer if tensor.name == 'stem.w.s')
    assert list(scale.dims) == [8], 'one scale per output channel'
    for feeds in batches(2):
        one, other = run.run(model, feeds), run.run(made, feeds)
        for name in one:
            off = np.abs(one[name] - other[name])
            assert off.max() < 0.1 and 0 < off.mean() < 0.01


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def test_the_network_is_that_of_quantize_static(calibrated, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = iter(batches())

        def get_next(self):
            return next(self.feeds, None)

    layers = ['net/stem', 'net/block/a', 'net/block/b']
    graph, network = calibrated.graph, calibrated.network(layers)
    quantize_static(
        copy.deepcopy(graph.network),
        tmp_path / 'static.onnx',
        Reader(),
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=graph.int8_nodes(layers),
    )
    static = onnx.load(tmp_path / 'static.onnx')
    nodes, static_nodes = (sorted(map(str, model.graph.node)) for model in (network, static))
    assert nodes == static_nodes and constants(network) == constants(static)


@pytest.mark.parametrize('method', ['percentile', 'mse'])
def test_histograms_clip_what_minmax_finds(calibrated, method):
    clipped = quantiser(residual_model(), method=method, percentile=95)
    for name, (low, high) in clipped.ranges.items():
        assert calibrated.ranges[name][0] <= low <= high <= calibrated.ranges[name][1]
    assert clipped.ranges['input'][1] < calibrated.ranges['input'][1]


def test_the_last_layers_are_quantised_only_when_asked_for():
    graph = DenseGraph(residual_model())
    names = list(PATHS.values())
    assert int8_layers(graph, [], False) == names[:-1]
    assert int8_layers(graph, ['*block*'], True) == ['net/stem', 'head/tower', 'head/last']
    with pytest.raises(UsageError, match='all 5 layers stay in float'):
        int8_layers(graph, ['*'], True)


def test_the_report_has_the_share_of_the_weights_and_the_layers_in_float():
    graph = DenseGraph(residual_model())
    words = ['m', '--calibrate', 'a/b', '--method', 'percentile', '--percentile', '99']
    args = build_parser().parse_args(words)
    facts = quantisation_facts(args, MagicMock(), graph, ['net/stem', 'head/tower'], MagicMock())
    assert (facts['layers'], facts['method'], facts['source']) == (2, 'percentile 99', 'b')
    assert facts['weights_share'] == round((8 * 3 * 9 + 8 * 8 * 9) / (8 * 3 * 9 + 3 * 8 * 8 * 9 + 4 * 8), 4)
    assert facts['float_layers'] == ['net/block/a', 'net/block/b', 'head/last']


def test_what_a_top_k_sorts_is_a_last_layer_and_what_it_orders_is_not_compared():
    values = {
        'stem.w': KERNELS['stem'],
        'scores.w': RNG.normal(size=(1, 8, 1, 1)).astype(np.float32),
        'queries.w': RNG.normal(size=(SIZE * SIZE, 4)).astype(np.float32),
        'flat': np.array([1, -1]),
        'k': np.array([5]),
        'rows': np.array([-1, 8]),
        'head.w': RNG.normal(size=(4, 2)).astype(np.float32),
    }
    nodes = [
        conv('stem', 'input', 'stem'),
        helper.make_node('Conv', ['stem', 'scores.w'], ['scores'], 'enc/scores/Conv'),
        helper.make_node('Reshape', ['scores', 'flat'], ['flat_scores'], 'enc/reshape'),
        helper.make_node('TopK', ['flat_scores', 'k'], ['best', 'indices'], 'enc/topk'),
        helper.make_node('Gather', ['queries.w', 'indices'], ['queries'], 'dec/gather'),
        helper.make_node('MatMul', ['queries', 'head.w'], ['y'], 'dec/head/MatMul'),
    ]
    image = helper.make_tensor_value_info('input', TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    output = helper.make_tensor_value_info('y', TensorProto.FLOAT, [1, 5, 2])
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, 'queries', [image], [output], constants)
    made = DenseGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8))
    assert made.last == ['enc/scores', 'dec/head']
    assert made.compared == ['enc/scores']


def test_a_model_without_layers_to_quantise_is_refused(calibrated):
    graph = calibrated.graph
    int8 = graph.joined(calibrated.network(['net/stem']))
    for model, words in (
        (int8, 'already quantised'),
        (residual_model(opset=12), 'opset 12'),
        (parse('y = Relu(x)'), 'float32 weights'),
    ):
        with pytest.raises(ModelFileError, match=f'q.onnx: .*{words}'):
            DenseGraph(model, 'q.onnx')
    assert DenseGraph(residual_model(opset=13)).layers == graph.layers
    with pytest.raises(ModelFileError, match='in int8'):
        check_single({'q.onnx': int8})
    with pytest.raises(UsageError, match=r'net/stm.*net/stem'):
        graph.matching(['net/stm'])
    with pytest.raises(ExportError, match='of the 1 layers'):
        layers_in_int8(graph, graph.network, ['net/stem'])


@pytest.mark.parametrize(('value', 'method'), [(np.inf, 'minmax'), (np.nan, 'percentile')])
def test_a_range_that_is_not_finite_is_named(value, method):
    made, samples = DenseQuantiser(DenseGraph(residual_model())), batches(2)
    samples[0]['input'][0, 0, 0, 0] = value
    made.calibrate(samples, method)
    with pytest.raises(InferenceError, match="'input' of node net/stem/Conv"):
        made.network(['net/stem'])


def test_outputs_that_are_not_finite_in_float32_are_named():
    graph = DenseGraph(residual_model(kernels={**KERNELS, 'last': np.full_like(KERNELS['last'], np.nan)}))
    with pytest.raises(InferenceError, match='head/last'):
        compare_outputs(graph, graph.network, batches(1))


def raises(error):
    raise error


def test_a_calibration_that_fails_says_what_failed(calibrated, monkeypatch):
    made = DenseQuantiser(calibrated.graph)
    with pytest.raises(InferenceError, match='INVALID_ARGUMENT'):
        made.calibrate([{'input': np.ones((1, 3, 5, 5), np.float32)}])
    with pytest.raises(DataError, match=r'a\.png'):
        made.calibrate(map(raises, [DataError('a.png')]))
    monkeypatch.setattr(onnx, 'save_model', lambda *_, **__: raises(OSError(28, 'No space left on device')))
    with pytest.raises(Mm2OnnxError, match=r'No space left on device.*TMPDIR'):
        made.calibrate(batches(1))


def test_engines_that_are_absent_or_fail_are_named(calibrated, monkeypatch):
    graph = calibrated.graph
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(EngineError, match='pip install openvino nncf'):
        NncfQuantiser(graph, [])
    failing = dict(side_effect=RuntimeError('failing'))
    monkeypatch.setitem(sys.modules, 'nncf', MagicMock(__version__='3.0', quantize=MagicMock(**failing)))
    with pytest.raises(InferenceError, match=r'NNCF 3\.0 failed: failing'):
        NncfQuantiser(graph, batches(1)).network(['net/stem'])
    openvino = MagicMock()
    monkeypatch.setitem(sys.modules, 'openvino', openvino)
    openvino.Core().compile_model().side_effect = RuntimeError('failing')
    with pytest.raises(InferenceError, match='OpenVINO failed to run the network: failing'):
        OpenVinoRunner(graph.network, [], 0).run({})
    openvino.Core().read_model.side_effect = RuntimeError('failing')
    with pytest.raises(ModelFileError, match='OpenVINO cannot compile the network: failing'):
        OpenVinoRunner(graph.network, [], 0)
