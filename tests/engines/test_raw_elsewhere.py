"""OpenCV's DNN module and ncnn run raw forms as ONNX Runtime does."""

import cv2
import numpy as np
import onnxruntime
import pytest

from marking import in_suite
from mmdeploy_ext.families import detector as deploy
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from toy_atss import PICTURE, export_toy, load_demo


@pytest.fixture(scope='module', params=in_suite(['atss', 'yolox'], 'atss'))
def raw(request, tmp_path_factory):
    """Return a file, its input (1, 3, 128, 160) and the outputs of ONNX Runtime by name."""
    toy = load_demo(request.param)
    size = dict(height=128, width=160)
    path = export_toy(toy, tmp_path_factory.mktemp('raw') / 'raw.onnx', form='raw', dynamic=False, **size)
    picture = deploy.prepare_fixed(toy.rule, read_image(PICTURE), *size.values())
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_outputs()]
    image = picture.tensor[None]
    return path, image, dict(zip(names, session.run(names, dict(input=image)), strict=True))


def check(expected, outputs):
    for (name, array), found in zip(expected.items(), outputs, strict=True):
        assert found.shape == array.shape, name
        assert np.abs(found - array).max() < 1e-4 * np.abs(array).max(), name


def test_opencv_gives_the_raw_outputs_of_onnx_runtime(raw):
    path, image, expected = raw
    net = cv2.dnn.readNetFromONNX(path)
    net.setInput(image, 'input')
    check(expected, net.forward(list(expected)))
