"""OpenCV's DNN module runs raw forms as ONNX Runtime does."""

import cv2
import numpy as np
import onnxruntime
import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from toy_atss import PICTURE, REPO


@pytest.mark.parametrize('name', ['atss_toy', 'retinanet_toy', 'yolox_toy'])
def test_opencv_gives_the_raw_outputs_of_onnx_runtime(name, tmp_path):
    config, checkpoint = f'configs/demo/{name}.py', f'demo/checkpoints/{name}.pth'
    toy = deploy.load(str(REPO / config), str(REPO / checkpoint))
    options = toy.family.choose(form='raw', height=128, width=160, opset=17)
    picture = deploy.prepare_fixed(toy.rule, read_image(PICTURE), 128, 160)
    path = str(tmp_path / 'raw.onnx')
    export_files(toy, options, path, [picture])
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_outputs()]
    expected = session.run(names, dict(input=picture.tensor[None]))
    net = cv2.dnn.readNetFromONNX(path)
    net.setInput(picture.tensor[None], 'input')
    for name, array, found in zip(names, expected, net.forward(names), strict=True):
        assert found.shape == array.shape, name
        assert np.abs(found - array).max() < 1e-4 * np.abs(array).max(), name
