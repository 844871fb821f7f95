"""What people get wrong is refused in one line that names it, with the exit status, and changes no file."""

import json
import os
import pickle
import shutil

import onnx
import pytest
import torch

from refusals import CHECKPOINT, CONFIG, MODEL, PICTURE, REPOSITORY

LEAF = f"_base_ = ['{CONFIG}']\n"
STEP = 'data.test.pipeline.1.transforms.2'
ONNX_CONFIG, PTH_CONFIG = (REPOSITORY / f'configs/demo/atss_toy_{name}.py' for name in ('onnx', 'pth'))


class RunsCode:
    """Pickled, this is a call."""

    def __reduce__(self):
        return os.system, ('echo a checkpoint ran code',)


def state() -> dict[str, torch.Tensor]:
    return torch.load(CHECKPOINT)['state_dict']


def without_head(path):
    torch.save(
        dict(state_dict={key: value for key, value in state().items() if 'bbox_head' not in key}), path
    )


CHECKPOINTS = {
    'missing': (lambda path: None, []),
    'a picture': (lambda path: shutil.copy(PICTURE, path), ['JPEG']),
    'code': (lambda path: path.write_bytes(pickle.dumps(RunsCode(), protocol=2)), ['posix.system']),
    'another architecture': (without_head, ['missing keys 23', 'bbox_head.cls_convs.0.conv.weight']),
}


@pytest.mark.parametrize('case', CHECKPOINTS)
def test_a_wrong_checkpoint(case, bench):
    make, words = CHECKPOINTS[case]
    path = bench.folder / 'weights.pth'
    make(path)
    bench.refuses('export', 'weights.pth', *words, checkpoint=path)


def test_a_checkpoint_of_other_classes_names_the_layer_and_both_shapes(bench):
    more = '--cfg-options model.bbox_head.num_classes=7'
    bench.refuses('export', 'bbox_head.atss_cls.weight', '(6, 64, 3, 3)', '(7, 64, 3, 3)', more=more)


CONFIGS = {
    'missing': (None, []),
    'syntax error': ('model = dict(type=\n', ['line 1']),
    'of mmdet 3': ('model = dict(data_preprocessor=dict())\n', ['test_dataloader.dataset.pipeline']),
    'missing plugin': (LEAF + "custom_imports = dict(imports=['no_such_plugin'])\n", ['no_such_plugin']),
    'unknown argument': (LEAF + 'model = dict(backbone=dict(dept=18))\n', ['dept']),
    'mistyped head': (LEAF + "model = dict(bbox_head=dict(type='ATSSHaed'))\n", ['bbox_head', 'ATSSHead']),
    'head of another family': (
        LEAF + "model = dict(bbox_head=dict(type='DETRHead'))\n",
        ['DETRHead', 'query'],
    ),
    'unknown step': (
        LEAF + "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Rot90')]))\n",
        ['Rot90'],
    ),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_a_wrong_config(case, bench):
    content, words = CONFIGS[case]
    path = bench.folder / 'bad.py'
    if content is not None:
        path.write_text(content)
    bench.refuses('export', 'bad.py', *words, config=path)


@pytest.mark.parametrize(
    ('option', 'word'),
    [
        (f'{STEP}.mean=1,2', 'mean'),
        (f'{STEP}.std=0,1,1', 'std'),
    ],
)
def test_a_wrong_override(option, word, bench):
    bench.refuses('export', word, more=f'--cfg-options {option}')


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('--shape 127 640', ['--shape 127 640', '128']),
        ('--opset-version 21', ['--opset-version 21', '11 to 20']),
        ('--opset-version 17 --exporter dynamo', ['--opset-version 17', '18 to 20']),
        ('--postprocess half', ['--postprocess', 'full', 'decode', 'raw']),
        ('--postprocess full --skip-postprocess', ['--skip-postprocess']),
        ('--verify --providers NoSuchProvider', ['NoSuchProvider', 'CPUExecutionProvider']),
        ('--verfiy', ['--verfiy', '--verify']),
        ('--contract deploy', ['--contract', 'dense']),
    ],
)
def test_a_wrong_option(option, words, bench):
    bench.refuses('export', *words, more=option)


def test_a_wrong_picture(bench):
    path = bench.folder / 'picture.png'
    bench.refuses('export', 'picture.png', more=f'--input-img {path}')
    path.write_text('not a picture')
    bench.refuses('export', 'picture.png', more=f'--verify --test-img {path}')
    bench.refuses('run', 'picture.png', image=path)


def changed(target, **props):
    """Write the demo's file with other `metadata_props`; no props, no metadata."""
    model = onnx.load(MODEL)
    kept = {entry.key: entry.value for entry in model.metadata_props} if props else {}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**kept, **{f'mm2onnx.{key}': text for key, text in props.items()}})
    onnx.save(model, target)


def weights_lost(path):
    onnx.save(onnx.load(MODEL), path, save_as_external_data=True, location='lost.data', size_threshold=64)
    path.with_name('lost.data').unlink()


FILES = {
    'missing': (lambda path: None, []),
    'a checkpoint': (lambda path: shutil.copy(CHECKPOINT, path), ['ZIP']),
    'without metadata': (changed, ['mm2onnx metadata']),
    'weights not there': (weights_lost, ['lost.data']),
    'of another family': (lambda path: changed(path, family='"solo"'), ['export it again']),
}


@pytest.mark.parametrize('case', FILES)
def test_a_wrong_file(case, bench):
    make, words = FILES[case]
    path = bench.folder / 'bad.onnx'
    make(path)
    bench.refuses('verify', 'bad.onnx', *words, onnx=path)
    bench.refuses('run', 'bad.onnx', *words, onnx=path)


def test_an_output_that_cannot_be_written(bench):
    bench.refuses('export', str(bench.out), output=bench.out)
    bench.refuses('verify', 'm.onnx/report', more=f'--report {bench.out}/m.onnx/report')


@pytest.mark.parametrize(
    ('tool', 'options', 'victim'),
    [
        ('export', dict(output='k.pth', checkpoint='k.pth'), 'k.pth'),
        ('verify', dict(onnx='m.onnx', more='--json m.onnx'), 'm.onnx'),
        ('run', dict(image='a.jpg', out='a.jpg'), 'a.jpg'),
    ],
)
def test_an_output_that_is_an_input(tool, options, victim, bench):
    for source, name in ((CHECKPOINT, 'k.pth'), (MODEL, 'm.onnx'), (PICTURE, 'a.jpg')):
        shutil.copy(source, bench.folder / name)
    bench.refuses(tool, victim, 'not overwritten', **options)


@pytest.mark.parametrize(
    ('spoil', 'status', 'words'),
    [
        (lambda folder: (folder / 'instances.json').unlink(), 2, ['data.test.ann_file']),
        (lambda folder: (folder / '1.png').unlink(), 1, ['1.png']),
    ],
)
def test_a_data_set_that_is_not_there(spoil, status, words, bench):
    bench.data()
    spoil(bench.folder / 'data')
    bench.refuses('test', *words, status=status)


def test_a_set_without_objects_is_evaluated_and_a_metric_that_it_has_not_is_refused(bench):
    bench.data(annotations=[])
    bench.refuses('test', 'mota', more='--eval mota')
    status, _, err = bench.call('test')
    assert (status, err) == (0, '')
    assert json.loads((bench.out / 'metrics_pth.json').read_text())['samples'] == 1


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('thread=2', ['thread', 'threads']),
        ('dump.sample=2', ['sample', 'samples']),
    ],
)
def test_a_wrong_key_of_backend_config(option, words, bench):
    bench.data()
    config = PTH_CONFIG if option.startswith('dump') else ONNX_CONFIG
    bench.refuses('test', *words, config=config, more=f'backend_config.{option}')


def test_a_bad_picture_of_a_folder_is_reported_and_the_others_are_done(bench):
    folder = bench.folder / 'in'
    folder.mkdir()
    shutil.copy(PICTURE, folder / 'a.jpg')
    (folder / 'b.jpg').write_bytes(PICTURE.read_bytes()[:2000])
    shutil.copy(PICTURE, folder / 'c.jpg')
    status, out, err = bench.call('run', image=folder, more='--json found.json')
    assert status == 1 and out.count('detections, ') == 3 and 'b.jpg' in err
    images = json.loads((bench.folder / 'found.json').read_text())['images']
    assert ['error' in image for image in images] == [False, True, False]
    assert bench.call('run', image=folder, more='--fail-fast')[0] == 2
