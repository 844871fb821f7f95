"""Models of grey pictures: read as mmcv reads them, exported and proven."""

import mmcv
import numpy as np
import pytest
import torch

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import detector as deploy
from mmdeploy_ext.runtime.detect import detect
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from toy_atss import CHECKPOINT, CONFIG, PICTURE, export_toy

STEPS = 'data.test.pipeline.1.transforms'
GREY = {
    'model.backbone.in_channels': 1,
    'data.test.pipeline.0.color_type': 'grayscale',
    f'{STEPS}.2.mean': [117.0],
    f'{STEPS}.2.std': [57.0],
    f'{STEPS}.2.to_rgb': False,
}


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Return the trained toy with the weights of its three channels added up."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    checkpoint = torch.load(CHECKPOINT, map_location='cpu', weights_only=False)
    first = checkpoint['state_dict']['backbone.conv1.weight']
    checkpoint['state_dict']['backbone.conv1.weight'] = first.sum(dim=1, keepdim=True)
    path = tmp_path_factory.mktemp('grey') / 'grey.pth'
    torch.save(checkpoint, path)
    return deploy.load(CONFIG, str(path), GREY)


@pytest.fixture(scope='module')
def grey_file(toy, tmp_path_factory):
    return export_toy(toy, tmp_path_factory.mktemp('grey') / 'grey.onnx')


def test_grey_levels_of_a_jpeg_are_those_of_mmcv():
    picture = read_image(PICTURE, 'grayscale')
    for channel in range(3):
        assert np.array_equal(picture[..., channel], mmcv.imread(str(PICTURE), 'grayscale'))


def test_a_grey_file_finds_the_objects_of_pytorch_in_a_picture(toy, grey_file):
    picture = read_image(PICTURE, 'grayscale')
    (expected,) = toy.family.reference(toy.model).results([prepare_image(toy.rule, picture)], True)
    with build_backend('OnnxRuntimeBackend', grey_file) as backend:
        assert backend.spec.inputs[0].axes == ('B', 1, 'H', 'W')
        found = detect(backend, picture)
    assert np.array_equal(found.labels, expected.labels) and found.scores[0] > 0.5
    np.testing.assert_allclose(found.bboxes_xyxy, expected.bboxes_xyxy, atol=1e-2)


def test_grey_files_take_no_pixels(toy):
    with pytest.raises(UsageError, match='grayscale'):
        deploy.check_picture_options(toy.family.choose(input='uint8'), toy.unbuilt_cfg, toy.family, toy.model)
