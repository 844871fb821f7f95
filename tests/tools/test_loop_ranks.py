"""The test loop on two processes started by hand, of which the first one alone fails: none of them hangs."""

import os
import socket
import subprocess
import sys

import pytest

from toy_atss import CHECKPOINT, CONFIG, REPO

STREAM = str(REPO / 'projects/configs/StreamPETR/stream_petr_toy_onnx.py')
STREAM_CHECKPOINT = str(REPO / 'demo/checkpoints/stream_petr_toy.pth')


def run_by_hand(words):
    """Run `tools/test.py` with each rank's words, as in two terminals; returns status and stderr of each."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', OMP_NUM_THREADS='1')
    started = [
        subprocess.Popen(
            [sys.executable, 'tools/test.py', *map(str, own), '--launcher', 'pytorch'],
            cwd=REPO,
            env=dict(os.environ, **place, RANK=str(rank), CUDA_VISIBLE_DEVICES=''),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(words)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def assert_both_say(ended, status, message):
    for rank, (code, error) in enumerate(ended):
        line = error.strip().splitlines()[-1]
        assert (code, line.startswith('error: ')) == (status, True), error
        assert message in line and ('process 0 of 2 failed' in line) == (rank == 1), line


def test_a_folder_that_only_the_first_rank_cannot_write(tmp_path):
    from projects.toydata.coco import ensure_toy_coco

    root = tmp_path / 'toy'
    ensure_toy_coco(root, train_images=1, val_images=2)
    data = [
        f'data.test.ann_file={root}/annotations/instances_val2017.json',
        f'data.test.img_prefix={root}/val2017/',
        'data.workers_per_gpu=0',
    ]
    (tmp_path / 'file').write_text('no folder')
    config = CONFIG.replace('.py', '_pth.py')
    words = [
        [config, CHECKPOINT, '--eval', 'bbox', '--work-dir', folder, '--cfg-options', *data]
        for folder in (tmp_path / 'file' / 'w', tmp_path / 'w')
    ]
    assert_both_say(run_by_hand(words), 2, 'file')


def test_files_that_only_the_first_rank_reads(tmp_path, nuscenes_words):
    """Rank 0 looks at the exported folder and finds it damaged; rank 1 would wait for its export."""
    folder = tmp_path / 'graphs'
    folder.mkdir()
    (folder / 'pts_head_memory.onnx').write_bytes(b'damaged')
    words = [STREAM, STREAM_CHECKPOINT, '--eval', 'bbox', '--work-dir', tmp_path / 'w', '--cfg-options']
    words += [*nuscenes_words, f'backend_config.onnx_file={folder}']
    assert_both_say(run_by_hand([words, words]), 1, 'delete it to have it exported')


@pytest.fixture
def nuscenes_words(tmp_path):
    from projects.mmdet3d_plugin.common.nuscenes_infos import create_infos
    from projects.toydata.nuscenes import Options, ensure_toy_nuscenes

    root = tmp_path / 'toy_nuscenes'
    ensure_toy_nuscenes(root, Options(train_scenes=1, val_scenes=1, frames=2), jobs=1, quiet=True)
    create_infos(str(root), str(root), 'toy_nuscenes', 'v1.0-trainval', 0)
    return [
        f'data.test.ann_file={root}/toy_nuscenes2d_temporal_infos_val.pkl',
        f'data.test.data_root={root}/',
        'data.workers_per_gpu=0',
    ]
