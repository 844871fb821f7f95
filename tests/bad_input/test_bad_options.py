"""Options out of range, images that cannot be read, engines that are not there."""

import sys
from pathlib import Path

import cv2
import onnx
import pytest
import torch

from mmdeploy_ext.engines.tensorrt import package as tensorrt_package
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from toy_engines import package

REPOSITORY = Path(__file__).resolve().parents[2]
TOY_IMAGE = REPOSITORY / 'demo/toy.jpg'
OPTIONS = {
    '--shape 0': ['--shape 0: expected positive'],
    '--shape 128 -32': ['--shape 128 -32: expected positive'],
    '--shape 127 640': ['--shape 127 640: ', 'at least the largest stride of the model, 128 pixels'],
    '--shape 1 2 3': ['--shape 1 2 3: expected one or two numbers'],
    '--shape big': ["argument --shape: invalid int value: 'big'"],
    '--opset-version 10': ['--opset-version 10: ', 'opsets 11 to 20'],
    '--opset-version 21': ['--opset-version 21: ', 'opsets 11 to 20'],
    '--opset-version 0': ['--opset-version 0: ', 'opsets 11 to 20'],
    '--opset-version -1': ['--opset-version -1: ', 'opsets 11 to 20'],
    '--opset-version 17 --exporter dynamo': ['--opset-version 17: ', 'dynamo', '18 to 20'],
    '--exporter onnx2': ["argument --exporter: invalid choice: 'onnx2'", 'torchscript', 'dynamo'],
    '--postprocess half': ["argument --postprocess: invalid choice: 'half'", 'full', 'decode', 'raw'],
    '--postprocess full --skip-postprocess': ['--skip-postprocess means', 'got --postprocess full'],
    '--score-form product': ['--score-form product goes with --postprocess decode, got full'],
    '--batch-size 0': ['--batch-size 0: expected a positive number'],
    '--std 1 0 1': ['--std 1.0 0.0 1.0: expected three positive'],
    '--mean 1 2': ['argument --mean: expected 3 arguments'],
    '--json v.json': ['--json v.json: goes with --verify'],
    '--threads -1': ['--threads -1: expected 0'],
    '--device tpu': ["--device tpu: expected 'cpu', 'cuda' or 'cuda:N'"],
    '--device meta': ["--device meta: expected 'cpu', 'cuda' or 'cuda:N'"],
    '--verify --providers NoSuchProvider': ['provider NoSuchProvider', 'CPUExecutionProvider'],
    '--providers CPUExecutionProvider --engine openvino': ['--providers goes with --engine onnxruntime'],
    '--threads 2 --engine tensorrt': [
        '--threads goes with --engine onnxruntime or openvino, got --engine tensorrt'
    ],
    '--engine tensorflow': ["argument --engine: invalid choice: 'tensorflow'"],
    '--no-such-option': ['unrecognized arguments: --no-such-option', '--help'],
}


def truncated_png(path):
    image = cv2.imread(str(TOY_IMAGE))
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes()[:300])


IMAGES = {
    'missing': (lambda path: None, ['no such image']),
    'zero bytes': (Path.touch, ['is empty (0 bytes), expected an image']),
    'a text': (lambda path: path.write_text('not a picture'), ['is not an image that OpenCV can decode']),
    'truncated': (truncated_png, ['is not an image that OpenCV can decode']),
    'a folder without images': (Path.mkdir, ['no image in this folder', '.jpg']),
}


@pytest.mark.parametrize('option', OPTIONS)
def test_an_option_out_of_range_is_refused_by_name(option, bench):
    bench.refuses('export', *OPTIONS[option], more=option)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
@pytest.mark.parametrize('tool', ['export', 'verify', 'test'])
def test_a_gpu_that_is_not_there_is_refused(tool, bench):
    bench.data()
    bench.refuses(tool, '--device cuda: this torch', 'sees no GPU; use --device cpu', more='--device cuda')


def test_an_engine_that_is_not_installed_is_refused_before_the_export(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    bench.refuses('export', 'OpenVINO', 'pip install openvino', more='--verify --engine openvino')


IN_A_CONFIG = '--cfg-options backend_config.type=TensorRtBackend'
NO_TENSORRT = {'export': '--verify --engine tensorrt', 'verify': '--engine tensorrt', 'test': IN_A_CONFIG}


@pytest.mark.parametrize('tool', NO_TENSORRT)
def test_tensorrt_that_is_not_installed_is_refused_before_the_export(tool, bench, monkeypatch):
    bench.data()
    monkeypatch.setattr(tensorrt_package, 'is_installed', lambda name: False)
    bench.refuses(tool, 'TensorRT is not installed', 'make env-tensorrt', more=NO_TENSORRT[tool])


@pytest.mark.skipif(find_gpu() is not None, reason='a GPU is there')
@pytest.mark.parametrize('tool', NO_TENSORRT)
def test_tensorrt_without_a_gpu_is_refused_before_the_export(tool, bench):
    package()
    bench.data()
    bench.refuses(tool, 'there is no GPU 0 here; an engine needs a GPU', more=NO_TENSORRT[tool])


def test_a_device_of_tensorrt_that_is_none_is_refused(bench):
    bench.data()
    more = f'{IN_A_CONFIG} backend_config.device=cpu'
    bench.refuses('test', "device='cpu': expected the index of a GPU", more=more)


@pytest.mark.parametrize('option', ['--input-img', '--test-img'])
@pytest.mark.parametrize(('make', 'words'), IMAGES.values(), ids=IMAGES)
def test_an_image_that_cannot_be_read_is_refused_by_name(make, words, option, bench):
    path = bench.folder / 'picture.png'
    make(path)
    bench.refuses('export', 'picture.png: ', *words, more=f'{option} {path}')


def test_an_image_without_permission_is_refused(public_folder, without_privileges):
    from mmdeploy_ext.core.errors import ImageError
    from mmdeploy_ext.preprocess.pictures import read_image

    path = public_folder / 'picture.png'
    path.write_bytes(TOY_IMAGE.read_bytes())
    path.chmod(0)
    with without_privileges(), pytest.raises(ImageError, match=r'picture.png.*\(Permission'):
        read_image(path)


def test_a_grayscale_image_exports(bench):
    path = bench.folder / 'gray.png'
    cv2.imwrite(str(path), cv2.imread(str(TOY_IMAGE), cv2.IMREAD_GRAYSCALE))
    done = bench.call('export', image=path, more='--shape 128 --skip-postprocess')
    assert (done.status, done.err) == (0, '')
    onnx.checker.check_model(onnx.load(bench.out / 'm.onnx'))
