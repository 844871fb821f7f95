"""Graphs of pictures as other programs feed them: pixels, inputs without defaults; proven and run alone."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import toy_two_stage
from image_checks import run_stages
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli.run_app import main as run_main
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.plugins import ENGINE as BACKEND
from mmdeploy_ext.engines.plugins import open_with_plugins
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.host_programs import DetectionCounts, check, hosted
from mmdeploy_ext.graphs.passes.shapes import set_by_text, with_fixed_metadata
from mmdeploy_ext.runtime.detect import detect
from mmdeploy_ext.runtime.detections import results_from_padded, with_labels
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, Stage, TensorSpec
from proofs import prove
from toy_atss import CHECKPOINT, CONFIG, PICTURE, REPO, export_toy, load_toy

HOSTS = dict(input='uint8-nhwc', channels='bgr', required_inputs=True, outputs='efficient-nms')
PLUGIN = dict(HOSTS, nms_plugin=True, max_candidates=1000, dynamic=False)


@pytest.fixture(scope='module')
def toy():
    return load_toy()


@pytest.fixture(scope='module')
def hosts_file(toy, tmp_path_factory):
    return export_toy(toy, tmp_path_factory.mktemp('hosts') / 'hosts.onnx', **HOSTS)


@pytest.fixture(scope='module')
def session(hosts_file):
    return onnxruntime.InferenceSession(hosts_file)


@pytest.fixture(scope='module')
def hosts_backend(hosts_file):
    with build_backend(BACKEND, hosts_file) as backend:
        yield backend


@pytest.fixture(scope='module')
def found(hosts_backend):
    """Return what the runtime makes of the picture."""
    return detect(hosts_backend, read_image(PICTURE))


def feeds_of_opencv(height, width, prepared, picture):
    """Return the inputs as a program makes them, padded with any value."""
    import cv2

    padded = np.full((1, height, width, 3), 200, np.uint8)
    shape = prepared.img_shape
    padded[0, : shape[0], : shape[1]] = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_LINEAR)
    scale = prepared.scale_factor[None]
    return dict(input=padded, img_shape=np.float32([shape]), scale_factor=scale)


def test_a_program_feeds_pixels_of_opencv_and_reads_num_dets_rows_of_pytorch(toy, session, found):
    picture = read_image(PICTURE)
    prepared = prepare_image(toy.rule, picture)
    (expected,) = toy.family.reference(toy.model).results([prepared], True)
    assert [value.name for value in session.get_inputs()] == ['input', 'img_shape', 'scale_factor']
    assert not session.get_overridable_initializers()
    pixels = session.get_inputs()[0]
    assert (pixels.type, pixels.shape) == ('tensor(uint8)', ['B', 'H', 'W', 3])
    feeds = feeds_of_opencv(*prepared.tensor.shape[1:], prepared, picture)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    assert {name: (array.shape, array.dtype) for name, array in outputs.items()} == dict(
        num_dets=((1, 1), np.int32),
        det_boxes=((1, 100, 4), np.float32),
        det_scores=((1, 100), np.float32),
        det_classes=((1, 100), np.int32),
    )
    count = outputs['num_dets'].item()
    assert count == len(expected) > 3
    assert np.abs(outputs['det_boxes'][0, :count] - expected.bboxes_xyxy).max() < 1e-2
    assert np.abs(outputs['det_scores'][0, :count] - expected.scores).max() < 1e-4
    assert np.array_equal(outputs['det_classes'][0, :count], expected.labels)
    assert np.array_equal(found.labels, expected.labels)
    assert np.abs(found.bboxes_xyxy - expected.bboxes_xyxy).max() < 1e-2


def test_a_file_of_pixels_of_any_size_becomes_one_of_a_fixed_size(hosts_file, found, tmp_path):
    fixed = with_fixed_metadata(set_by_text(onnx.load(hosts_file), ['B=1', 'H=256', 'W=320']))
    onnx.save(fixed, tmp_path / 'fixed.onnx')
    with build_backend('OnnxRuntimeBackend', tmp_path / 'fixed.onnx') as backend:
        assert backend.spec.inputs[0].axes == (1, 256, 320, 3)
        of_fixed = detect(backend, read_image(PICTURE))
    assert np.array_equal(of_fixed.labels, found.labels)
    assert np.abs(of_fixed.bboxes_xyxy - found.bboxes_xyxy).max() < 1e-2


def test_the_raw_form_takes_pixels_and_the_size_before_padding(toy, tmp_path):
    path = export_toy(toy, tmp_path / 'raw.onnx', form='raw', dynamic=False, input='uint8')
    spec = read_metadata(path).spec
    image, size = spec.inputs
    assert (image.dtype, image.axes, size.name) == ('uint8', (1, 3, 256, 320), 'img_shape')
    prepared = detectors.prepare_fixed(toy.rule, read_image(PICTURE), 256, 320)
    feeds = dict(input=prepared.tensor[None], img_shape=np.float32([prepared.img_shape]))
    expected = toy.family.reference(toy.model).tensors(feeds, 'raw')
    with build_backend('OnnxRuntimeBackend', path) as backend:
        found = backend.infer(feeds)
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() < 1e-4 * np.abs(array).max(), name


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(channels='rgb'), '--channels'),
        (dict(input='uint8'), 'to_float32'),
        (dict(outputs='efficient-nms', nms_plugin=True, max_candidates=9), '--required-inputs'),
        (dict(outputs='efficient-nms', nms_plugin=True, required_inputs=True), '--max-candidates'),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    changes = {'data.test.pipeline.0.to_float32': True} if said == 'to_float32' else {}
    detector = detectors.read_config(CONFIG, CHECKPOINT, changes)
    detectors.build(detector)
    with pytest.raises(UsageError, match=said):
        detectors.check_picture_options(
            detector.family.choose(**options), detector.unbuilt_cfg, detector.family, detector.model
        )


@pytest.mark.parametrize('rows', [2, 5])
def test_results_are_padded_to_the_limit_of_an_image(rows):
    labels = torch.tensor([[3, -1, -1, -1, -1], [2, 1, 0, 0, 0]])[:, :rows]
    dets = torch.rand(2, rows, 5) * (labels >= 0)[..., None]
    count, boxes, scores, classes = DetectionCounts(('dets', 'labels'), 4, pads=True)(dets, labels)
    assert count.tolist() == [[1], [min(rows, 4)]] and boxes.shape == (2, 4, 4) and scores.shape == (2, 4)
    assert classes[:, : min(rows, 4)].equal(labels[:, :4].int())
    assert not boxes[0, 1:].any() and (classes[0, 1:] == -1).all()


@pytest.mark.parametrize('is_valid', [True, False])
def test_a_traced_test_path_tells_in_a_number_whether_its_results_are_valid(is_valid):
    results = dict(
        dets=np.zeros((1, 2, 5), np.float32), labels=np.array([[1, 0]]), valid=np.array([is_valid])
    )
    spec = GraphSpec(
        'full', (), tuple(TensorSpec(n, str(x.dtype), (1, 'n', 5)[: x.ndim]) for n, x in results.items())
    )
    stage = Stage('whole', lambda: [torch.from_numpy(array) for array in results.values()], (), (*results,))
    family = SimpleNamespace(facts=lambda model: SimpleNamespace(max_per_img=4))
    options = FAMILIES['dense'].choose(outputs='efficient-nms')
    graph = hosted(family, Graph('full', None, spec, make=lambda: [stage]), options, None, None)
    assert [tensor.dtype for tensor in graph.spec.outputs if tensor.name == 'valid'] == ['int32']
    outputs = run_stages(graph.make(), {})
    assert {*graph.spec.output_names} <= {*outputs}
    assert outputs['valid'].dtype == np.int32 and outputs['valid'].tolist() == [is_valid]


def test_results_of_two_stage_detectors_are_those_of_dets_and_labels():
    model, family = toy_two_stage.seeded(), FAMILIES['two_stage']
    options = toy_two_stage.options_of('faster').replace(outputs='efficient-nms')
    feeds = family.feeds(toy_two_stage.images(), rescale=True)
    (graph,) = family.graphs(model, options)
    counted = hosted(family, graph, options, None, model)
    expected = results_from_padded(run_stages(graph.make(), feeds))
    outputs = run_stages(counted.make(), feeds)
    results = results_from_padded(with_labels({name: outputs[name] for name in counted.spec.output_names}))
    for one, other in zip(results, expected, strict=True):
        assert len(one) and np.array_equal(one.bboxes_xyxy, other.bboxes_xyxy)
        assert np.array_equal(one.labels, other.labels) and np.array_equal(one.scores, other.scores)


def test_the_plugin_computes_the_results_of_standard_operators(toy, hosts_backend, tmp_path, capsys):
    path = export_toy(toy, tmp_path / 'plugin.onnx', **PLUGIN)
    (node,) = (node for node in onnx.load(path).graph.node if node.op_type == 'EfficientNMS_TRT')
    assert {one.name: one.i for one in node.attribute}['max_output_boxes'] == 100
    feeds = toy.family.feeds([detectors.prepare_fixed(toy.rule, read_image(PICTURE), 256, 320)], rescale=True)
    assert run_main([path, str(PICTURE), '--out', str(tmp_path)]) != 0
    assert 'EfficientNMS_TRT' in capsys.readouterr().err
    expected = hosts_backend.infer(feeds)
    with open_with_plugins(BACKEND, path) as backend:
        found = backend.infer(feeds)
    assert expected['num_dets'] >= 3 and found['candidates'] <= 1000
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('name', 'options'),
    [('atss_toy', {}), ('deformable_detr_toy', {}), ('atss_toy', PLUGIN)],
)
def test_a_file_is_proven(name, options, tmp_path):
    model = detectors.load(f'{REPO}/configs/demo/{name}.py', f'{REPO}/demo/checkpoints/{name}.pth')
    path = export_toy(model, tmp_path / 'hosts.onnx', **(HOSTS | options))
    verdict = prove(model, [path], [('toy', read_image(PICTURE))])
    assert verdict.proven, verdict.failures


def test_models_of_masks_have_no_outputs_of_boxes_alone(toy):
    spec = dict(dets=('B', 'n', 5), labels=('B', 'n'), masks=('B', 'n', 'h', 'w'))
    spec = GraphSpec('m', (), tuple(TensorSpec(name, 'float32', axes) for name, axes in spec.items()))
    with pytest.raises(UsageError, match='masks'):
        check(FAMILIES['dense'].choose(outputs='efficient-nms'), None, spec, FAMILIES['dense'], toy.model)
