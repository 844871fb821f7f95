"""Models of pictures of n bands: read, exported, proven and run."""

import json

import cv2
import mmcv
import numpy as np
import pytest
import torch

from mmdeploy_ext.cli.run_images import main as run_main
from mmdeploy_ext.core.errors import ConfigError, ImageError, UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.inputs.samples import read_picture
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.preprocessing.pictures import ConfigPipeline, compare_pictures
from mmdeploy_ext.runtime.detect import detect
from toy_atss import CHECKPOINT, CONFIG, PICTURE

PIPELINE = 'data.test.pipeline'
NORMALIZE = f'{PIPELINE}.1.transforms.2'
BANDS = {
    'model.backbone.in_channels': 4,
    f'{PIPELINE}.0.color_type': 'unchanged',
    f'{NORMALIZE}.mean': [103.5, 116.3, 123.7, 103.5],
    f'{NORMALIZE}.std': [57.4, 57.1, 58.4, 57.4],
    f'{NORMALIZE}.to_rgb': False,
}


def load(checkpoint, changes):
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    return deploy.load(CONFIG, str(checkpoint), {**BANDS, **changes})


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Return the trained toy's weights; the fourth band shares those of blue."""
    content = torch.load(CHECKPOINT, map_location='cpu', weights_only=False)
    red, green, blue = content['state_dict']['backbone.conv1.weight'].unbind(dim=1)
    weights = torch.stack([blue / 2, green, red, blue / 2], dim=1)
    content['state_dict']['backbone.conv1.weight'] = weights
    path = tmp_path_factory.mktemp('bands') / 'bands.pth'
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def toy(checkpoint):
    return load(checkpoint, {})


@pytest.fixture(scope='module')
def picture(toy):
    return read_picture(DEFAULT_PICTURE, toy.rule)


@pytest.fixture(scope='module')
def bands_file(toy, picture, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('bands') / 'bands.onnx')
    options = toy.family.choose(dynamic=True, opset=17, height=256, width=320)
    export_files(toy, options, path, [deploy.prepare_fixed(toy.rule, picture, 256, 320)])
    return path


def test_a_file_of_four_bands_is_proven(toy, picture, bands_file):
    verdict, _ = prove(toy, [bands_file], [('toy', picture)], timed=False)
    assert verdict.proven, verdict.failures
