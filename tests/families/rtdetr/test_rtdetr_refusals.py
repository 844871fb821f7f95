"""What is wrong for RT-DETR alone: foreign checkpoints, classes, sizes, options."""

import shlex

import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint

CONFIG = toy_rtdetr.CONFIG


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = toy_rtdetr.write_checkpoint(tmp_path_factory.mktemp('rtdetr') / 'seeded.pth')
    return load_checkpoint(path).state_dict


def test_a_checkpoint_of_another_family(bench):
    bench.refuses('export', 'atss_toy.pth', 'backbone.conv1.conv1_1', config=CONFIG)


def test_unconverted_checkpoints(bench, weights):
    path = bench.folder / 'my original.pth'
    torch.save(dict(model=weights, ema=dict(module=weights)), path)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path)
    command = shlex.split(str(refused.value).partition('convert it: ')[2].partition(';')[0])
    assert command[-5:] == ['rtdetr', str(path), 'OUT.pth', '--config', 'CONFIG']


def test_another_number_of_classes(bench, weights):
    torch.save(dict(state_dict=weights), bench.folder / 'good.pth')
    more = '--cfg-options model.decoder.num_classes=80'
    options = dict(config=CONFIG, checkpoint=bench.folder / 'good.pth')
    bench.refuses('export', 'good.pth', 'enc_score_head', '(6, 96)', '(80, 96)', more=more, **options)


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ('--shape 200 256', ['--shape 200 256', '32']),
        ('--shape 32 64', ['42 tokens for num_queries=60']),
        ('--postprocess decode', ['--postprocess decode']),
        ('--opset-version 15', ['--opset-version 15', '16 to 20']),
        ('--cfg-options model.backbone.depth=20', ['depth=20']),
        ('--cfg-options model.test_cfg.max_per_img=361', ['max_per_img=361', '360 pairs']),
    ],
)
def test_wrong_options_are_refused_before_the_weights_load(more, words, bench):
    unread = bench.folder / 'good.pth'
    unread.write_bytes(b'never read')
    bench.refuses('export', *words, config=CONFIG, checkpoint=unread, more=more)
