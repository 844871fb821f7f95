"""Graphs of pictures as other programs feed them: pixels, inputs without defaults; proven and run alone."""

import numpy as np
import onnxruntime
import pytest

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.detect import detect
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy, load_toy

NHWC = dict(input='uint8-nhwc', channels='bgr', required_inputs=True)


@pytest.fixture(scope='module')
def toy():
    return load_toy()


@pytest.fixture(scope='module')
def pixels_file(toy, tmp_path_factory):
    return export_toy(toy, tmp_path_factory.mktemp('hosts') / 'pixels.onnx', **NHWC)


def test_a_file_of_pixels_and_plain_inputs_is_proven(toy, pixels_file):
    verdict, _ = prove(toy, [pixels_file], [('toy', read_image(PICTURE))])
    assert verdict.proven, verdict.failures


def test_a_program_feeds_the_pixels_that_opencv_reads(pixels_file):
    """A picture of the size of the network, padded with any value, gives the boxes of `mm2onnx run`."""
    picture = read_image(PICTURE)
    with build_backend('OnnxRuntimeBackend', pixels_file) as backend:
        prepared = backend.metadata.preprocess.apply(picture)
        expected = detect(backend, picture)
    session = onnxruntime.InferenceSession(pixels_file)
    assert [value.name for value in session.get_inputs()] == ['input', 'img_shape', 'scale_factor']
    assert not session.get_overridable_initializers()
    pixels = session.get_inputs()[0]
    height, width = prepared.img_shape
    padded = np.full((1, *prepared.tensor.shape[1:], 3), 200, np.uint8)
    import cv2

    padded[0, :height, :width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    assert (pixels.type, pixels.shape) == ('tensor(uint8)', ['B', 'H', 'W', 3])
    feeds = dict(
        input=padded,
        img_shape=np.float32([[height, width]]),
        scale_factor=prepared.scale_factor[None],
    )
    dets, labels = session.run(None, feeds)
    count = len(expected)
    assert np.abs(dets[0, :count, :4] - expected.bboxes_xyxy).max() < 1e-2
    assert np.array_equal(labels[0, :count], expected.labels)


def test_the_raw_form_takes_pixels_and_the_size_before_padding(toy, tmp_path):
    path = export_toy(toy, tmp_path / 'raw.onnx', form='raw', dynamic=False, input='uint8')
    spec = read_metadata(path).spec
    image, size = spec.inputs
    assert (image.dtype, image.axes, size.name) == ('uint8', (1, 3, 256, 320), 'img_shape')
    prepared = deploy.prepare_fixed(toy.rule, read_image(PICTURE), 256, 320)
    feeds = dict(input=prepared.tensor[None], img_shape=np.float32([prepared.img_shape]))
    plain = export_toy(toy, tmp_path / 'plain.onnx', form='raw', dynamic=False)
    with build_backend('OnnxRuntimeBackend', plain) as backend:
        expected = backend.infer(dict(input=feeds['input']))
    with build_backend('OnnxRuntimeBackend', path) as backend:
        found = backend.infer(feeds)
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() < 1e-4 * np.abs(array).max(), name


@pytest.mark.parametrize(
    ('options', 'said'),
    [(dict(channels='rgb'), '--channels'), (dict(input='uint8'), 'to_float32')],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    changes = {'data.test.pipeline.0.to_float32': True} if said == 'to_float32' else {}
    deployment = deploy.read_config(CONFIG, CHECKPOINT, changes)
    deploy.build(deployment)
    with pytest.raises(UsageError, match=said):
        deploy.check_options(
            deployment.family.choose(**options), deployment.unbuilt_cfg, deployment.family, deployment.model
        )
