"""What TensorRT cannot take is told by node name; with the package, its parser and builder agree."""

import numpy as np
import onnx
import pytest

from mmdeploy_ext.base.errors import EngineError, ModelFileError
from mmdeploy_ext.engines.tensorrt.limits import UNSUPPORTED, check_limits, check_turing, find_refusals
from scn_files import golden_model
from toy_engines import package, parse, two_outputs

K = '[best] y, at = TopK(x, k)'
REFUSED = {
    'nms': (
        parse(
            '[suppress] y = NonMaxSuppression(b, s, k, i)',
            'float[1,9,4] b, float[1,2,9] s',
            'int64[N,3] y',
            constants='<int64[1] k = {3}, float[1] i = {0.5}>',
        ),
        r'suppress \(NonMaxSuppression\): has no runner in TensorRT-RTX; export full with --max-candidates K',
    ),
    'nonzero': (parse('[found] y = NonZero(x)', outputs='int64[2,N] y'), r'found \(NonZero\): has no plugin'),
    'deform': (
        parse(
            '[dcn] y = DeformConv(x, w, o)',
            'float[1,3,8,8] x, float[4,3,k,k] w, float[1,2,8,8] o',
            'float[1,4,8,8] y',
            opset=19,
        ),
        r'dcn \(DeformConv\): is not parsed by TensorRT-RTX, and becomes GridSample and Conv with',
    ),
    'topk': (
        parse(K, 'float[1,5000] x', 'float[1,3841] y', constants='<int64[1] k = {3841}>'),
        r'best \(TopK\): K=3841, but TensorRT sorts at most 3840',
    ),
    'integer product': (
        parse('[prod] y = MatMul(x, x)', 'int64[3,3] x', 'int64[3,3] y'),
        r'prod \(MatMul\): multiplies only floats',
    ),
    'scatter': (
        parse(
            '[put] y = ScatterElements<reduction = "max">(x, i, x)', 'float[2,3] x, int64[2,3] i', opset=18
        ),
        r"put \(ScatterElements\): reduction='max'",
    ),
    'split': (
        parse('[parts] y, z = Split(x, n)', 'float[9] x, int64[2] n', 'float[A] y, float[B] z'),
        r'parts \(Split\): splits by lengths that are known only at run time',
    ),
    'unknown operator': (
        parse('[sel] y = Compress(x, c)', 'float[9] x, bool[9] c', 'float[N] y'),
        r'sel \(Compress\): TensorRT has no such operator',
    ),
    'uint8 codes': (
        parse(
            'q = QuantizeLinear(x, s, z) [dq] y = DequantizeLinear(q, s, z)',
            constants='<float s = {0.1}, uint8 z = {0}>',
        ),
        r'dq \(DequantizeLinear\): has codes of uint8, but TensorRT takes int8',
    ),
    'zero point': (
        parse(
            '[q] c = QuantizeLinear(x, s, z) y = DequantizeLinear(c, s, z)',
            constants='<float s = {0.1}, int8 z = {-3}>',
        ),
        r'q \(QuantizeLinear\): has a zero point other than 0',
    ),
    'int32 bias': (
        parse('[b] y = DequantizeLinear(x, s)', 'int32[3] x', 'float[3] y', constants='<float s = {0.1}>'),
        r'b \(DequantizeLinear\): has codes of int32',
    ),
    'int16 input': (parse('y = Cast<to = 1>(x)', 'int16[2,3] x'), r'x: input of type int16'),
    'nameless': (parse('a = Relu(x) y = Unique(a)', 'float[3] x', 'float[N] y'), r'#1 \(Unique\)'),
}
BUILT = {
    'two outputs': two_outputs(),
    'topk 3840': parse(K, 'float[1,5000] x', 'float[1,3840] y', constants='<int64[1] k = {3840}>'),
    'empty axis': parse('y = Concat<axis = 1>(x, e)', 'float[2,3] x, float[2,0] e'),
    'int64': parse('y = Add(x, x)', 'int64[3] x', 'int64[3] y'),
    'bool': parse('y = Not(x)', 'bool[3] x', 'bool[3] y'),
    'split by constants': parse(
        'y, z = Split(x, n)', 'float[9] x', 'float[4] y, float[5] z', constants='<int64[2] n = {4, 5}>'
    ),
    'int8 codes': parse(
        'q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)',
        constants='<float s = {0.1}, int8 z = {0}>',
    ),
    'uint8 cast': parse('y = Cast<to = 1>(x)', 'uint8[2,3] x'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_taken_is_refused_by_node(case):
    model, message = REFUSED[case]
    with pytest.raises(EngineError, match=message):
        check_limits(model, rtx=True, file='m.onnx')


@pytest.mark.parametrize('case', BUILT)
def test_what_can_be_taken_is_not_refused(case):
    assert not find_refusals(BUILT[case], rtx=True)


@pytest.mark.parametrize('case', ['nms', 'nonzero', 'deform'])
def test_tensorrt_proper_has_these(case):
    assert not find_refusals(REFUSED[case][0], rtx=False)


@pytest.mark.parametrize('operator', ['MatMul(x, x)', 'Gemm(x, x)', 'Einsum<equation = "ij,jk->ik">(x, x)'])
def test_turing_has_no_float32_matrix_products(operator):
    model = parse(f'[prod] y = {operator}', 'float[3,3] x', 'float[3,3] y')
    check_turing(model, [80, 121], 'm.onnx')
    with pytest.raises(EngineError, match=r'SM 75.*\(\w+\).*TensorRT-RTX'):
        check_turing(model, [75, 86], 'm.onnx')
    half = parse(f'[prod] y = {operator}', 'float16[3,3] x', 'float16[3,3] y')
    check_turing(half, [75], 'm.onnx')


def test_a_sparse_graph_is_refused():
    with pytest.raises(ModelFileError, match='libspconv dialect'):
        find_refusals(golden_model('bevfusion.plain.xyz'), rtx=True)


def test_the_installed_parser_knows_the_same_operators():
    rtx = package()
    trt, log = rtx.module, rtx.logger()
    parser = trt.OnnxParser(trt.Builder(log).create_network(0), log)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ''}
    unknown = {name for name in names if not parser.supports_operator(name)}
    assert unknown - {'DeformConv'} == UNSUPPORTED.keys()
    assert np.all([name in names for name in UNSUPPORTED])
