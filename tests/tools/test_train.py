"""tools/train.py: one short run of mmdet's loop, and options that are refused."""

import pytest
from mmcv import Config

from mmdeploy_ext.synthetic.coco import ensure_toy_coco
from train_tool import REPOSITORY, load_tool, train

CONFIG = 'configs/demo/atss_toy.py'
NOTE = r"it's\new"


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('train')
    ensure_toy_coco(folder / 'toy_coco', train_images=8, val_images=2, size=(64, 96), quiet=True)
    data = [f'data.{part}.{key}={folder}/toy_coco/{value}' for part in ('train', 'val')
            for key, value in (('ann_file', f'annotations/instances_{part}2017.json'),
                               ('img_prefix', f'{part}2017/'))]
    words = ['runner.max_epochs=1', 'evaluation.interval=1', 'checkpoint_config.interval=1',
             'data.workers_per_gpu=0', 'data.persistent_workers=False', f'note={NOTE}', *data]
    assert train(CONFIG, '--work-dir', folder / 'run', '--seed', '1', '--cfg-options', *words) == 0
    return folder / 'run'


def test_a_run_leaves_log_config_and_checkpoint_and_evaluates(trained):
    assert {'epoch_1.pth', 'atss_toy.py'} <= {path.name for path in trained.iterdir()}
    log = next(trained.glob('*.log')).read_text()
    assert 'seed: 1' in log
    assert 'Epoch(val) [1][2]' in log
    assert Config.fromfile(trained / 'atss_toy.py').note == NOTE


def test_a_published_checkpoint_is_plain_data_with_the_same_weights(trained, tmp_path):
    torch = pytest.importorskip('torch')
    tool = load_tool('model_converters/publish_model.py')
    assert tool.main([str(trained / 'epoch_1.pth'), str(tmp_path / 'out.pth')]) == 0
    before, after = (torch.load(path, weights_only=True, map_location='cpu')
                     for path in (trained / 'epoch_1.pth', tmp_path / 'out.pth'))
    assert set(after) == {'meta', 'state_dict'}
    assert {'CLASSES', 'config', 'mmdet_version', 'epoch', 'seed'} <= set(after['meta'])
    assert 'env_info' not in after['meta']
    assert before['state_dict'].keys() == after['state_dict'].keys()
    assert all(torch.equal(before['state_dict'][key], value) for key, value in after['state_dict'].items())
    assert tool.main([str(trained / 'epoch_1.pth'), str(tmp_path / 'half.pth'), '--half']) == 0
    half = torch.load(tmp_path / 'half.pth', weights_only=True, map_location='cpu')['state_dict']
    for key, value in after['state_dict'].items():
        wanted = value.half() if value.is_floating_point() else value
        assert half[key].dtype == wanted.dtype and torch.equal(half[key], wanted)


@pytest.mark.parametrize(('words', 'message'), [
    ([], 'required: config'),
    (['nix.py'], 'nix.py'),
    ([CONFIG, '--launcher', 'rocket'], 'rocket'),
    ([CONFIG, '--cfg-options', 'epochs'], '--cfg-options epochs: expected key=value'),
    (['configs/_base_/models/atss_toy.py'], 'atss_toy.py: has no data.train, optimizer, '),
    ([CONFIG, '--cfg-options', 'data=1'], 'atss_toy.py: data=1, expected a dict'),
])
def test_bad_options_end_with_one_line_and_status_2(words, message, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    try:
        status = load_tool('train.py').main(words)
    except SystemExit as stop:  # argparse leaves by itself
        status = stop.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith('error: ') and message in last


def test_missing_data_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    options = ['--work-dir', str(tmp_path), '--cfg-options', 'data.train.ann_file=nowhere/train.json']
    assert load_tool('train.py').main([CONFIG, *options]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('error: ') and 'nowhere/train.json' in last
