"""Data sets without annotations, images or samples; backend_config with unknown types, keys and values."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def drop_annotations(bench):
    (bench.folder / 'data/instances.json').unlink()


def drop_images(bench):
    (bench.folder / 'data/images/1.png').unlink()
    (bench.folder / 'data/images').rmdir()


def drop_one_image(bench):
    (bench.folder / 'data/images/1.png').unlink()


def empty_one_image(bench):
    (bench.folder / 'data/images/1.png').write_bytes(b'')


def empty_set(bench):
    bench.annotate(images=[], annotations=[])


def truncate_annotations(bench):
    path = bench.folder / 'data/instances.json'
    path.write_bytes(path.read_bytes()[:50])


def foreign_json(bench):
    (bench.folder / 'data/instances.json').write_text('{"shapes": []}')


UNREADABLE = 'data/instances.json) cannot be read'
CASES = {
    'missing annotation file': (drop_annotations, 2, ['data.test.ann_file=', 'instances.json: no such file']),
    'missing image folder': (drop_images, 2, ['data.test.img_prefix=', 'data/images: no such folder']),
    'empty set': (empty_set, 2, ['data.test has no sample', 'instances.json']),
    'truncated annotations': (truncate_annotations, 2, [UNREADABLE, 'a CocoDataset']),
    'annotations of another format': (foreign_json, 2, [UNREADABLE, 'a CocoDataset']),
    'missing image': (drop_one_image, 1, ['images/1.png', 'o such file']),
    'zero-byte image': (empty_one_image, 1, ['images/1.png']),
}
BACKENDS = {
    'backend_config.type=NoSuchBackend': [
        "backend_config.type='NoSuchBackend', expected one of TorchBackend, OnnxRuntimeBackend"
    ],
    'backend_config.thread=2': ["backend_config has unknown keys ['thread']", "'threads'"],
    'backend_config.postprocess=half': [
        "backend_config.postprocess='half', expected one of full, decode, raw"
    ],
    'backend_config.exporter=onnx2': ["backend_config.exporter='onnx2', expected torchscript or dynamo"],
    'backend_config.opset_version=9': ['backend_config: --opset-version 9: ', '11 to 20'],
    'backend_config.shape=0': ['backend_config.shape 0: expected positive'],
    'backend_config.shape=4': ['backend_config: --shape 4 4: ', 'largest stride of the model, 128'],
    'backend_config.shape=1,2,3': ['backend_config.shape 1 2 3: expected one or two numbers'],
    'backend_config.threads=-1': ['threads=-1: expected 0'],
    'backend_config.providers=NoSuchProvider': ['provider NoSuchProvider', 'CPUExecutionProvider'],
    'backend_config.graph_optimization=most': ["graph_optimization='most'", 'none, basic, extended, all'],
    'backend_config.onnx_file=/proc/no/m.onnx': ['/proc/no/m.onnx', 'cannot be written'],
}
DUMPS = {
    'backend_config.dump.sample=2': ["backend_config.dump has unknown keys ['sample']", 'samples, tensors'],
    'backend_config.dump.samples=-1': ['backend_config.dump.samples', '-1'],
    'backend_config.dump.dir=/proc/no': ['/proc/no', 'cannot be written'],
    'backend_config.dump=all': ["backend_config.dump='all'", 'samples, tensors, dir'],
}


@pytest.mark.parametrize(('spoil', 'status', 'words'), CASES.values(), ids=CASES)
def test_a_data_set_that_cannot_be_used_is_refused_by_name(spoil, status, words, bench):
    bench.data()
    spoil(bench)
    bench.refuses('test', *words, status=status)


@pytest.mark.parametrize('option', BACKENDS)
def test_an_engine_setting_that_does_not_exist_is_refused_before_the_weights_load(option, bench):
    bench.data()
    bench.refuses('test', *BACKENDS[option], config=REPOSITORY / 'configs/demo/atss_toy_onnx.py', more=option)


@pytest.mark.parametrize('option', DUMPS)
def test_a_dump_setting_that_does_not_exist_is_refused_before_the_weights_load(option, bench):
    bench.data()
    bench.refuses('test', *DUMPS[option], config=REPOSITORY / 'configs/demo/atss_toy_pth.py', more=option)


def test_a_backend_config_that_is_no_dict_is_refused(bench):
    bench.data()
    path = bench.folder / 'bad.py'
    path.write_text(f"_base_ = ['{REPOSITORY}/configs/demo/atss_toy.py']\nbackend_config = 'TorchBackend'\n")
    bench.refuses('test', "bad.py: backend_config='TorchBackend'", 'expected a dict', config=path)


def test_a_metric_that_the_data_set_does_not_have_is_refused(bench):
    bench.data()
    bench.refuses('test', '--eval', 'mota', more='--eval mota')


def test_verify_refuses_a_missing_data_set_before_the_weights_load(bench):
    options = bench.data_options(ann_file=bench.folder / 'none.json')
    bench.refuses('verify', 'data.test.ann_file=', 'none.json', more=f'--eval bbox --cfg-options {options}')


def test_a_set_with_one_picture_and_no_object_is_evaluated(bench):
    bench.data()
    bench.annotate(annotations=[])
    done = bench.call('test')
    assert (done.status, done.err) == (0, '')
    assert json.loads((bench.out / 'metrics_pth.json').read_text())['samples'] == 1
