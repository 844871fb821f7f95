"""An INT8 file of any tool is the float graph but for its roundings, which fit the weights and the values."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mmdeploy_ext.api import prove
from mmdeploy_ext.bench.precision.calibration_sets import calibration_set
from mmdeploy_ext.proving.proof import BY_OTHERS, open_file
from mmdeploy_ext.proving.quantised import UndoneFile
from mmdeploy_ext.spec.metadata import read_metadata
from toy_atss import REPO

ATSS = REPO / 'configs/demo/atss_toy.py', REPO / 'demo/checkpoints/atss_toy.pth'
DEMO, PICTURE = REPO / 'demo/atss_toy.onnx', REPO / 'demo/toy.jpg'


def export():
    """Two convolutions with Relu, a sum of both, and a last convolution."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node('Conv', ['x', 'wa', 'ba'], ['a'], '/a/Conv', pads=[1] * 4),
        helper.make_node('Relu', ['a'], ['ra'], '/a/Relu'),
        helper.make_node('Conv', ['ra', 'wb', 'bb'], ['b'], '/b/Conv', pads=[1] * 4),
        helper.make_node('Clip', ['b', 'low', 'high'], ['rb'], '/b/Clip'),
        helper.make_node('Add', ['ra', 'rb'], ['s'], '/Add'),
        helper.make_node('Conv', ['s', 'wc', 'bc'], ['y'], '/c/Conv', pads=[1] * 4),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 12, 12])] for name in 'xy']
    arrays = {f'w{name}': rng.normal(size=(4, 4, 3, 3)) for name in 'abc'}
    arrays |= {f'b{name}': rng.normal(size=4) for name in 'abc'} | dict(low=np.zeros(()), high=np.array(6))
    tensors = [numpy_helper.from_array(np.float32(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, 'g', *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def samples(seed, number):
    rng = np.random.default_rng(seed)
    return [dict(x=np.float32(rng.normal(size=(1, 4, 12, 12)))) for _ in range(number)]


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def quantise(source, target, batches, kind, form=QuantFormat.QDQ):
    settings = dict(quant_format=form, per_channel=True, weight_type=QuantType.QInt8)
    settings |= dict(activation_type=kind, op_types_to_quantize=['Conv', 'Relu', 'Clip'])
    quantize_static(source, target, Reader(batches), **settings)


@pytest.fixture(scope='module', params=[QuantType.QInt8, QuantType.QUInt8], ids=['s8s8', 'u8s8'])
def by_ort(request, tmp_path_factory):
    """A file of ONNX Runtime's quantiser."""
    folder = tmp_path_factory.mktemp('int8')
    onnx.save(export(), folder / 'm.onnx')
    quantise(folder / 'm.onnx', folder / 'q.onnx', samples(0, 8), request.param)
    return onnx.load(folder / 'q.onnx')


def by_nncf(file):
    """A file of NNCF's shape: biases in float, moved by the rounding's mean error."""
    result = copy.deepcopy(file)
    result.producer_name = 'pytorch'
    for node in [node for node in result.graph.node if node.op_type == 'Conv']:
        name = f'b{node.name[1]}'
        bias = numpy_helper.to_array(next(one for one in export().graph.initializer if one.name == name))
        result.graph.initializer.append(numpy_helper.from_array(bias * np.float32(1.02), f'{name}/moved'))
        node.input[2] = f'{name}/moved'
    return result


def differences(file):
    undone = UndoneFile(file, export())
    return [one.where for one in undone.differences or undone.measured(samples(1, 4))]


def changed(file, name, new):
    result = copy.deepcopy(file)
    tensor = next(one for one in result.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(new(array.copy()).astype(array.dtype), name))
    return result


def row(factor):
    def new(array):
        array[1] = array[1] * factor
        return array

    return new


def rolled(array):
    array[2] = np.roll(array[2], 1)
    return array


WRONG = {
    'codes of a row': ('wb_quantized', rolled, '/b/Conv'),
    'scale of a row': ('wb_scale', row(1.3), '/b/Conv'),
    'too large a scale': ('wb_scale', row(4), '/b/Conv'),
    'zero points of weights': ('wb_zero_point', lambda zero: zero + 20, '/b/Conv'),
    'zero point of a Relu': ('ra_zero_point', lambda zero: zero + 20, '/a/Relu'),
    'range of a Clip': ('rb_scale', lambda scale: scale * 1.2, '/b/Clip'),
}
BIASES = {
    'bias': ('bb_quantized', row(1.5), '/b/Conv'),
    'scale of a bias': ('bb_quantized_scale', row(2), '/b/Conv'),
    'range of an input': ('s_scale', lambda scale: scale * 0.5, '/c/Conv'),
}
RANGES = {f'range x {factor}': factor for factor in (4, 0.5, 0.25)}


@pytest.mark.parametrize('fault', ['', *WRONG, *BIASES])
def test_a_file_of_onnx_runtime_rounds_the_weights_of_the_fresh_export(by_ort, fault):
    name, new, where = {**WRONG, **BIASES}.get(fault, ('wb_quantized', np.array, None))
    found = differences(changed(by_ort, name, new))
    assert where in found if fault else not found


@pytest.mark.parametrize('fault', ['', *WRONG, *RANGES, 'bias'])
def test_a_file_of_nncf_does_so_and_its_ranges_and_corrections_fit_the_values(by_ort, fault):
    file = by_nncf(by_ort)
    name, new, where = WRONG.get(fault, ('wb_quantized', np.array, None))
    if fault in RANGES:
        name, new, where = 's_scale', lambda scale: scale * RANGES[fault], 's_QuantizeLinear'
    if fault == 'bias':
        name, new, where = 'bb/moved', row(9), '/b/Conv'
    found = differences(changed(file, name, new))
    assert where in found if fault else not found


@pytest.mark.parametrize('factor', [4, 0.5])
def test_ranges_that_are_all_too_wide_or_all_too_narrow_are_found(by_ort, factor):
    file = by_nncf(by_ort)
    names = {tensor.name for tensor in file.graph.initializer if tensor.name.endswith('_scale')}
    for name in names & {'x_scale', 'ra_scale', 'rb_scale', 's_scale'}:
        file = changed(file, name, lambda scale: scale * factor)
    assert differences(file)


@pytest.mark.parametrize('fault', ['', *WRONG, 'bias', 'range of an input'])
def test_a_file_of_operators_on_codes_is_compared_too(tmp_path, fault):
    onnx.save(export(), tmp_path / 'm.onnx')
    form = QuantFormat.QOperator
    quantise(tmp_path / 'm.onnx', tmp_path / 'q.onnx', samples(0, 8), QuantType.QInt8, form)
    name, new, where = {**WRONG, **BIASES}.get(fault, ('wb_quantized', np.array, None))
    name = name.removeprefix('r') if name[0] == 'r' else name  # such tensors have a convolution's name
    found = differences(changed(onnx.load(tmp_path / 'q.onnx'), name, new))
    assert where in found if fault else not found


def test_a_reader_of_a_value_that_is_not_clipped_is_found(by_ort):
    file = copy.deepcopy(by_ort)
    next(node for node in file.graph.node if node.name == '/Add').input[0] = 'ra'
    assert '/Add' in differences(file)


def test_a_pair_that_reads_with_another_scale_than_it_writes_is_found(by_ort):
    file = changed(by_ort, 'ra_scale', np.array)
    node = next(node for node in file.graph.node if node.name == 'ra_DequantizeLinear')
    node.input[1] = 'rb_scale'
    assert node.name in differences(file)


def test_a_float_bias_by_onnx_runtime_is_the_models(by_ort):
    file = by_nncf(by_ort)
    file.producer_name = by_ort.producer_name
    assert '/b/Conv' in differences(file)


def test_a_file_that_another_tool_quantised_is_judged_as_int8(tmp_path):
    model = onnx.load(DEMO)
    tensors = dict(scale=np.float32(0.04), zero=np.int8(0))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(one), name) for name, one in tensors.items()
    )
    rounding = [
        helper.make_node('QuantizeLinear', ['input', 'scale', 'zero'], ['codes'], 'Q'),
        helper.make_node('DequantizeLinear', ['codes', 'scale', 'zero'], ['rounded'], 'DQ'),
    ]
    for node in model.graph.node:
        node.input[:] = ['rounded' if name == 'input' else name for name in node.input]
    for place, node in enumerate(rounding):
        model.graph.node.insert(place, node)
    onnx.save(model, tmp_path / 'q.onnx')
    metadata = open_file(str(tmp_path / 'q.onnx')).metadata
    assert metadata.edits == (BY_OTHERS,) and metadata.precision == 'int8'
    assert open_file(str(DEMO)).metadata.edits == ()


@pytest.mark.matrix
def test_the_verdict_of_a_file_by_onnx_runtime(tmp_path):
    path = tmp_path / 'q.onnx'
    images = calibration_set(str(DEMO), read_metadata(str(DEMO)), str(PICTURE), None, 1)
    quantise(DEMO, path, images, QuantType.QInt8)
    verdict = prove(*map(str, ATSS), str(path), samples=[str(PICTURE)])
    assert verdict.title == 'WITHIN INT8 BARS' and verdict.of('file')[0].figures['equal']
    name = 'network/backbone/layer1/layer1.0/conv2/Conv_output_0'
    onnx.save(changed(onnx.load(path), f'{name}_scale', lambda scale: scale * 4), path)
    verdict = prove(*map(str, ATSS), str(path), samples=[str(PICTURE)])
    assert not verdict.passed and name in verdict.of('file')[0].text
