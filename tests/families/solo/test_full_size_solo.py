"""One full-size SOLOv2-light R34: exported once, equal to mmdet where 2000 candidates compete."""

import numpy as np
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.seeded.by_name import solo_image, solo_weights
from mmdeploy_ext.tasks.mask import match_detections

CONFIG = 'configs/solov2/solov2_light_r34.py'


def prepared(height, width, img_shape, ori_shape):
    """Return the picture that `mm2onnx synthetic seeded-image` writes."""
    return PreparedImage(solo_image(height, width)[0].numpy(), img_shape, np.ones(4, np.float32), ori_shape)


@pytest.fixture(scope='module')
def light(tmp_path_factory):
    """Return the deployment and its dynamic `full` file."""
    folder = tmp_path_factory.mktemp('light')
    model = find_family(cfg := load_config(CONFIG)).build(cfg)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=solo_weights(shapes)), folder / 'light.pth')
    deployment = deploy.load(CONFIG, str(folder / 'light.pth'))
    options = FAMILIES['solo'].choose(height=320, width=352, dynamic=True)
    traced = prepared(320, 352, (320, 341), (240, 256))
    export_files(deployment, options, str(folder / 'light.onnx'), [traced])
    return deployment, str(folder / 'light.onnx')


@pytest.mark.matrix
def test_full_finds_mmdets_instances_at_a_size_it_never_saw(light):
    deployment, path = light
    images = [prepared(448, 672, (448, 671), (427, 640))]
    feeds = deployment.family.feeds(images, True)
    with build_backend('OnnxRuntimeBackend', path) as backend:
        outputs = backend.infer(feeds)
        found = results_of(deployment.family.name, backend.metadata, outputs, feeds)
    expected = deployment.family.reference(deployment.model).results(images, True)
    row = match_detections('image', expected[0], found[0])
    assert row.passed and row.matched == 100 == len(found[0]), row
    assert row.worst_iou >= 0.999 and row.worst_score <= 1e-4
    assert outputs['masks'].shape == (1, 100, 427, 640)
    assert (expected[0].masks != found[0].masks).sum() <= 100
