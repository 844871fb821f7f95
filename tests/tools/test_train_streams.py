"""tools/train.py on a stream: sequences side by side, checkpoints, resuming, the devkit's metrics."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import toy_streampetr as toy
from projects.mmdet3d_plugin.common.nuscenes_infos import create_infos
from projects.toydata.nuscenes import Options, ensure_toy_nuscenes

REPOSITORY = Path(__file__).resolve().parents[2]
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
    options = Options(train_scenes=2, val_scenes=1, frames=3, image_size=(96, 54))
    ensure_toy_nuscenes(folder / 'nuscenes', options, jobs=1, quiet=True)
    create_infos(folder / 'nuscenes', folder / 'nuscenes', 'drive', quiet=True)
    path = folder / 'stream.py'
    path.write_text(CONFIG.format(repository=REPOSITORY, model=toy.model_cfg(), root=f'{folder}/nuscenes/'))
    return path


def run(*words):
    command = [sys.executable, 'tools/train.py', *words, '--seed', '0']
    result = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stderr


def iterations(folder):
    lines = [json.loads(line) for path in folder.glob('*.log.json') for line in path.read_text().splitlines()]
    return [line['iter'] for line in lines if line.get('mode') == 'train']


def test_a_stream_is_trained_evaluated_and_resumed(config, tmp_path):
    log = run(str(config), '--work-dir', str(tmp_path / 'run'))
    assert iterations(tmp_path / 'run') == [1, 2]
    assert 'geometry warm-up' in log and 'pts_bbox_NuScenes/mAP' in log
    again = run(str(config), '--work-dir', str(tmp_path / 'more'), '--no-validate',
                '--resume-from', str(tmp_path / 'run/iter_2.pth'), '--cfg-options', 'runner.max_iters=3')
    assert iterations(tmp_path / 'more')[-1] == 3 and (tmp_path / 'more/iter_3.pth').is_file()
    assert 'geometry warm-up' not in again
