"""What only RT-DETR can get wrong: foreign checkpoints, classes, sizes, layouts, options."""

import shlex

import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.cli import run_images
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import load_checkpoint

COMMAND = 'tools/convert.py rtdetr'
CONFIG = toy_rtdetr.CONFIG
BATCH = '--dynamic-batch --shape 128 160'


@pytest.fixture(scope='module')
def seeded(tmp_path_factory):
    return toy_rtdetr.write_checkpoint(tmp_path_factory.mktemp('rtdetr') / 'seeded.pth')


@pytest.fixture(scope='module')
def weights(seeded):
    return load_checkpoint(seeded).state_dict


@pytest.fixture
def good(bench, weights):
    """Return the options of a good command, the checkpoint written."""
    torch.save(dict(state_dict=weights), bench.folder / 'good.pth')
    return dict(config=CONFIG, checkpoint=bench.folder / 'good.pth')


def test_each_family_takes_its_own_checkpoints(bench, good):
    bench.refuses('export', 'atss_toy.pth: does not fit the model', 'backbone.conv1.conv1_1', config=CONFIG)
    words = ['good.pth: does not fit the model', 'encoder.input_proj']
    bench.refuses('export', *words, checkpoint=good['checkpoint'])


def test_an_unconverted_checkpoint_is_refused_by_name(bench, weights):
    path = bench.folder / 'original.pth'
    torch.save(dict(model=weights, ema=dict(module=weights)), path)
    command = f'{COMMAND} {path} OUT.pth --config CONFIG'
    bench.refuses('export', 'original.pth', command, config=CONFIG, checkpoint=path)


def test_the_command_that_converts_can_be_typed_where_the_name_has_a_space(tmp_path, weights):
    path = tmp_path / 'my original.pth'
    torch.save(dict(model=weights), path)
    with pytest.raises(CheckpointError, match='Convert it: ') as refused:
        load_checkpoint(path)
    command = shlex.split(str(refused.value).partition('Convert it: ')[2])
    assert command == ['python', *COMMAND.split(), str(path), 'OUT.pth', '--config', 'CONFIG']


def test_another_number_of_classes_is_refused(bench, good):
    more = '--cfg-options model.decoder.num_classes=80'
    bench.refuses('export', 'good.pth', 'enc_score_head', '(6, 96)', '(80, 96)', more=more, **good)


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ('--shape 200 256', ['--shape 200 256', 'multiples of 32']),
        ('--shape 32 64', ['42 tokens for num_queries=60', 'larger']),
        ('--opset-version 15', ['--opset-version 15', '16 to 20']),
        ('--postprocess decode', ['--postprocess decode: expected full or raw']),
        ('--dynamic-export --dynamic-batch', ['--dynamic-batch', '--dynamic-export', 'choose one']),
        ('--layout fork', ['--layout fork', "'rtdetr' has no such option"]),
        ('--cfg-options model.encoder.position_layout=columns', ["'columns'", 'original, row_major']),
        (
            '--cfg-options model.encoder.hidden_dim=94 model.encoder.num_heads=2',
            ['hidden_dim=94', 'multiple of 4'],
        ),
        ('--cfg-options model.backbone.depth=20', ['depth=20', '18, 34, 50, 101']),
        ('--cfg-options model.test_cfg.max_per_img=400', ['max_per_img=400', '360']),
        ('--cfg-options model.decoder.num_heads=5', ['num_heads=5', 'hidden_dim=96']),
    ],
)
def test_wrong_options_are_refused_before_the_weights_load(more, words, bench):
    missing = bench.folder / 'good.pth'
    missing.write_bytes(b'never read')
    bench.refuses('export', *words, config=CONFIG, checkpoint=missing, more=more)


@pytest.mark.parametrize(
    ('more', 'typed'),
    [
        (BATCH, '--dynamic-batch'),
        ('--no-fuse', '--no-fuse'),
        ('--grid-sample gather', '--grid-sample gather'),
    ],
)
def test_options_that_other_families_do_not_have_are_named_as_they_were_typed(more, typed, bench):
    bench.refuses('export', f"error: {typed}: family 'dense' has no such option", more=more)


@pytest.mark.matrix  # in the suite: SOLO (test_bad_solo.py)
def test_runners_take_their_own_family(bench, good, capfd):
    path = bench.folder / 'rtdetr.onnx'
    done = bench.call('export', output=path, more=BATCH, **good)
    assert done.status == 0 and 'dynamic batch, fixed size' in done.out, done.err
    bench.refuses('run', 'rtdetr.onnx', "'rtdetr'", 'onnx_rtdetr.py', onnx=path)
    bench.refuses('verify', 'rtdetr.onnx', "'rtdetr'", "'dense'", onnx=path)
    picture = str(toy_rtdetr.PICTURE)
    assert run_images.main([str(bench.onnx_file), picture], 'rtdetr') == 2
    assert "'dense'" in capfd.readouterr().err
    assert run_images.main([str(path), picture, '--out', 'x.png'], 'rtdetr') == 0
