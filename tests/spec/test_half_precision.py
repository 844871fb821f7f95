"""`--precision fp16`: what is float16, what stays float32, and that a proof never calls it proven."""

import re

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from mmdeploy_ext.cli import export_app
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.results import HALF, Case, DetectionRow, TensorRow, accept_masks, accept_rate
from proofs import check_files, prove_samples
from toy_atss import CONFIG, PICTURE, export_toy, load_toy
from verdicts import cases_of, checks_of

KEEP, SIZE = '*/bbox_head/*', (128, 160)


@pytest.fixture(scope='module')
def detector():
    return load_toy()


@pytest.fixture(scope='module')
def files(detector, tmp_path_factory):
    """Return two exports: of the whole detector, and a raw one with a float32 head and float16 ends."""
    folder = tmp_path_factory.mktemp('half')
    fixed = dict(dynamic=False, precision='fp16', height=SIZE[0], width=SIZE[1])
    return dict(
        full=export_toy(detector, folder / 'full.onnx', **fixed),
        raw=export_toy(detector, folder / 'raw.onnx', form='raw', keep_fp32=(KEEP,), fp16_io=True, **fixed),
    )


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def images():
    return [('toy.jpg', read_image(PICTURE))]


def test_the_network_is_float16_and_post_processing_and_ends_are_float32(files):
    model = onnx.load(files['full'])
    types = types_of(model)
    convolutions = {types[node.output[0]] for node in model.graph.node if node.op_type == 'Conv'}
    assert convolutions == {TensorProto.FLOAT16}
    after = [node for node in model.graph.node if node.name.startswith('postprocess/')]
    assert after
    for node in after:
        assert TensorProto.FLOAT16 not in [types.get(name) for name in node.output], node.name
    ends = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert TensorProto.FLOAT16 not in ends


def test_nodes_kept_by_pattern_are_float32(files):
    model = onnx.load(files['raw'])
    types = types_of(model)
    found = {True: set(), False: set()}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            found['/bbox_head/' in node.name].add(types[node.output[0]])
    assert found == {True: {TensorProto.FLOAT}, False: {TensorProto.FLOAT16}}


def test_float16_ends_are_written_by_option_and_fed_and_read_in_float32(detector, files):
    spec = read_metadata(files['raw']).spec
    assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} == {'float16'}
    prepared = detectors.prepare_fixed(detector.rule, read_image(PICTURE), *SIZE)
    feeds = detector.family.feeds([prepared], True)
    with build_backend('OnnxRuntimeBackend', files['raw']) as raw:
        got = raw.infer({'input': feeds['input']})
    wanted = detector.family.reference(detector.model).tensors(feeds, 'raw')
    for name, array in got.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted[name], atol=0.02 * np.abs(wanted[name]).max())


def test_a_verdict_is_within_bars_and_never_proven(detector, files):
    verdict = prove_samples(detector, files['full'], images(), written=True)
    assert verdict.passed and not verdict.proven, verdict.failures
    assert verdict.title == 'WITHIN FP16 BARS'
    cosines = [row.cosine for case in cases_of(verdict) for row in case.tensors]
    assert cosines and min(cosines) >= 0.999


def test_float16_that_a_file_does_not_own_up_to_is_not_proven(detector, files, tmp_path):
    model = onnx.load(files['full'])
    entry = next(entry for entry in model.metadata_props if entry.key == 'mm2onnx.options')
    entry.value = entry.value.replace('"fp16"', '"fp32"')
    path = str(tmp_path / 'silent.onnx')
    onnx.save(model, path)
    verdict = check_files(detector, path, images(), edited=True)
    assert not verdict.passed
    assert any(check.name == 'precision' and not check.passed for check in checks_of(verdict))


def test_a_fault_in_a_float16_file_is_found(detector, files, tmp_path):
    model = onnx.load(files['raw'])
    half = [value for value in model.graph.initializer if value.data_type == TensorProto.FLOAT16]
    largest = max(half, key=lambda value: numpy_helper.to_array(value).size)
    array = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array(array[::-1].copy(), largest.name))
    path = str(tmp_path / 'faulty.onnx')
    onnx.save(model, path)
    verdict = prove_samples(detector, path, images(), edited=True)
    assert not verdict.passed and verdict.title == 'NOT WITHIN FP16 BARS'
    assert any('below 0.999' in row.reason for case in cases_of(verdict) for row in case.tensors)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--precision', 'bf16'], 'no bfloat16 form.*inference-precision bf16'),
        (['--fp16-io'], '--fp16-io goes with --precision fp16 only, got fp32'),
    ],
)
def test_options_that_do_nothing_are_refused_before_the_weights_load(given, message, tmp_path, capsys):
    target = str(tmp_path / 'm.onnx')
    status = export_app.main([CONFIG, 'none.pth', '--output-file', target, *given])
    assert status == 2
    assert re.search(message, capsys.readouterr().err.replace('\n', ' '))


@pytest.mark.parametrize(('other', 'passes'), [(0.9995, True), (0.98, False)])
def test_yes_or_no_masks_are_judged_over_all_inputs(other, passes):
    rows = [
        TensorRow('matched masks', '2x4x4', 1.0, 1.0, cosine, None, cosine >= HALF.cosine)
        for cosine in (0.9989, other)
    ]
    cases = [Case('input', '1x3x4x4', traced=False, tensors=(row,)) for row in rows]
    assert all(case.passed for case in accept_masks(cases, HALF)) == passes


@pytest.mark.parametrize(('missing', 'extra', 'passes'), [(5, 5, True), (12, 0, False), (0, 12, False)])
def test_results_are_judged_by_the_matched_share_of_the_longer_list(missing, extra, passes):
    row = DetectionRow('input', 100, 100 - missing, missing, extra, 1.0, 0.0, False, '')
    cases, failure = accept_rate([Case('input', '1x3x4x4', traced=False, detections=(row,))], HALF)
    assert cases[0].passed == passes == (not failure)
