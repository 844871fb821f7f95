"""tools/train.py on a stream: sequences side by side, checkpoints, resuming, the devkit's metrics."""

import json

import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr as toy
from mmdeploy_ext.cli.nuscenes_infos import create_infos
from mmdeploy_ext.synthetic.nuscenes import SetOptions, ensure_toy_nuscenes
from train_tool import REPOSITORY, train

CONFIG = """
from projects.configs.nuscenes_stream import image_augmentation, stream_data
_base_ = ['{repository}/projects/configs/_base_/stream_runtime.py']
model = {model}
data = stream_data(image_augmentation((32, 96), (1.0, 1.1), source=(54, 96)),
                   [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0], root='{root}', infos='drive2d_temporal_infos',
                   samples_per_gpu=2, workers_per_gpu=0, seq_split_num=1, filter_empty_gt=False)
runner = dict(type='IterBasedRunner', max_iters=2)
checkpoint_config = dict(interval=1)
evaluation = dict(interval=2)
custom_hooks = [dict(type='GeometryWarmupHook', iters=2, num_points=8)]
log_config = dict(interval=1)
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A config for the tiny detector on a drive of three scenes."""
    folder = tmp_path_factory.mktemp('drive')
    options = SetOptions(train_scenes=2, val_scenes=1, frames=3, image_size=(96, 54))
    ensure_toy_nuscenes(folder / 'nuscenes', options, jobs=1, quiet=True)
    create_infos(folder / 'nuscenes', folder / 'nuscenes', 'drive', quiet=True)
    path = folder / 'stream.py'
    path.write_text(CONFIG.format(repository=REPOSITORY, model=toy.model_cfg(), root=f'{folder}/nuscenes/'))
    return path


def run(folder, *words):
    """Train in a folder; return its log."""
    assert train(*words, '--work-dir', folder, '--seed', '0') == 0
    return next(folder.glob('*.log')).read_text()


def iterations(folder):
    lines = [json.loads(line) for path in folder.glob('*.log.json') for line in path.read_text().splitlines()]
    return [line['iter'] for line in lines if line.get('mode') == 'train']


@pytest.mark.matrix
def test_a_stream_is_trained_evaluated_and_resumed(config, tmp_path):
    log = run(tmp_path / 'run', config)
    assert iterations(tmp_path / 'run') == [1, 2]
    assert 'geometry warm-up' in log and 'pts_bbox_NuScenes/mAP' in log
    resume = ['--resume-from', tmp_path / 'run/iter_2.pth', '--cfg-options', 'runner.max_iters=3']
    again = run(tmp_path / 'more', config, '--no-validate', *resume)
    assert iterations(tmp_path / 'more')[-1] == 3 and (tmp_path / 'more/iter_3.pth').is_file()
    assert 'geometry warm-up' not in again
