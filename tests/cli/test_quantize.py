"""quantize.py on the trained toy ATSS: a file that runners and the test loop take; what is refused."""

import dataclasses
import importlib.util

import onnx
import pytest

from mmdeploy_ext.base.files import read_json, sha256_file
from mmdeploy_ext.cli import run_images, test_app
from mmdeploy_ext.cli.quantize_app import main
from mmdeploy_ext.spec.metadata import read_metadata
from refusals import refused
from toy_atss import CHECKPOINT, CONFIG, PICTURE, REPO

DEMO = REPO / 'demo/atss_toy.onnx'
LAYERS, LAST = 35, 3


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=2, val_images=2)
    return root


@pytest.fixture(scope='module')
def int8(data, tmp_path_factory):
    """The INT8 file and its report."""
    folder = tmp_path_factory.mktemp('int8')
    output, report = folder / 'atss_toy.int8.onnx', folder / 'report.json'
    source = data / 'annotations/instances_train2017.json'
    files = ['--output', str(output), '--json', str(report)]
    files += ['--reduce-range']  # right on every CPU
    assert main([str(DEMO), '--calibrate', str(source), '--rounds', '1', *files]) == 0
    return output, read_json(report)


def test_the_report_says_what_was_done_and_what_it_costs(int8):
    output, report = int8
    assert report['layers'] == LAYERS - LAST
    assert [name.rpartition('/')[2] for name in report['float_layers']] == [
        'atss_cls', 'atss_reg', 'atss_centerness'
    ]  # fmt: skip
    assert (report['images'], report['source'], report['method']) == (2, 'instances_train2017.json', 'minmax')
    assert report['size_ratio'] == pytest.approx(output.stat().st_size / report['float_bytes'], abs=1e-4)
    assert report['size_ratio'] <= 0.30
    assert len(report['outputs']) == LAST
    assert all(figures['cosine'] > 0.995 for figures in report['outputs'].values())
    assert report['time']['rounds'] == 1


def test_metadata_stay_and_the_file_says_how_it_was_made(int8):
    output, _ = int8
    assert dataclasses.replace(read_metadata(str(output)), edits=()) == read_metadata(str(DEMO))
    props = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert (props['int8.activations'], props['int8.weights']) == ('uint8', 'int8 per channel (7 bits)')
    assert props['int8.images'] == '2'


def test_runners_take_the_file_and_find_what_the_float_file_finds(int8, tmp_path):
    found = []
    for index, model in enumerate((str(DEMO), str(int8[0]))):
        target = tmp_path / f'{index}.json'
        arguments = [model, str(PICTURE), '--out', str(tmp_path / 'd.png'), '--json', str(target)]
        assert run_images.main(arguments, 'with_postprocess') == 0
        found.append(
            sorted(
                detection['label']
                for detection in read_json(target)['images'][0]['detections']
                if detection['score'] > 0.5
            )
        )
    assert found[0] == found[1] and found[0]


def evaluate(model, data, folder):
    """Return the exit status of the test loop with this file."""
    options = [
        f'data.test.ann_file={data}/annotations/instances_val2017.json',
        f'data.test.img_prefix={data}/val2017/',
        'data.workers_per_gpu=0',
        f'backend_config.onnx_file={model}',
        'backend_config.check_dump=False',
    ]
    arguments = [CONFIG.replace('.py', '_onnx.py'), CHECKPOINT, '--eval', 'bbox', '--work-dir', str(folder)]
    return test_app.main([*arguments, '--cfg-options', *options])


def test_a_stale_int8_file_is_not_written_over(int8, data, tmp_path, capsys):
    model = onnx.load(int8[0])
    for entry in model.metadata_props:
        if entry.key.endswith('checkpoint_sha256'):
            entry.value = entry.value.replace(entry.value.strip('"')[:4], '0000', 1)
    onnx.save(model, path := tmp_path / 'stale.onnx')
    before = sha256_file(path)
    assert evaluate(path, data, tmp_path / 'run') == 1  # found after the weights
    assert 'stale.onnx: is an INT8 file and stale' in capsys.readouterr().err
    assert sha256_file(path) == before


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        ('c.py', 'CHECKPOINT'),
        ('c.py c.pth --engine openvino', '--engine onnxruntime'),
        ('--images -1', '--images -1'),
        ('--probe-images 0', '--probe-images 0'),
        ('--rounds -1', '--rounds -1'),
        ('--threads -1', '--threads -1'),
    ],
)
def test_options_are_refused_before_a_file_is_read(words, named, capsys):
    assert named in refused(capsys, main, 'm.onnx', *words.split(), '--calibrate', 'a.jpg')


def test_times_need_pytorch(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torch' else found(name))
    assert '--rounds 0' in refused(capsys, main, 'm.onnx', '--calibrate', 'a.jpg')
