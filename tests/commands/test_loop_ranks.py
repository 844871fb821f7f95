"""The test loop on two processes started by hand, of which the first one alone fails: none of them hangs."""

import pytest

import toy_nuscenes
from rank_processes import run_ranks
from toy_atss import CHECKPOINT, CONFIG, REPO

STREAM = str(REPO / 'projects/configs/StreamPETR/stream_petr_toy_onnx.py')
STREAM_CHECKPOINT = str(REPO / 'demo/checkpoints/stream_petr_toy.pth')
TOOL = ('tools/test.py', '--eval', 'bbox', '--launcher', 'pytorch')


def assert_both_say(ended, status, message):
    for rank, (code, _, error) in enumerate(ended):
        line = error.strip().splitlines()[-1]
        assert (code, line.startswith('error: ')) == (status, True), error
        assert message in line and ('process 0 of 2 failed' in line) == (rank == 1), line


def test_a_folder_that_only_the_first_rank_cannot_write(tmp_path):
    from mmdeploy_ext.synthetic.coco import ensure_toy_coco

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
        [*TOOL, config, CHECKPOINT, '--work-dir', folder, '--cfg-options', *data]
        for folder in (tmp_path / 'file' / 'w', tmp_path / 'w')
    ]
    assert_both_say(run_ranks(tmp_path, words), 2, 'file')


@pytest.mark.matrix
def test_files_that_only_the_first_rank_reads(tmp_path, nuscenes_words):
    """Rank 0 looks at the exported folder and finds it damaged; rank 1 would wait for its export."""
    folder = tmp_path / 'graphs'
    folder.mkdir()
    (folder / 'pts_head_memory.onnx').write_bytes(b'damaged')
    words = [*TOOL, STREAM, STREAM_CHECKPOINT, '--work-dir', tmp_path / 'w', '--cfg-options']
    words += [*nuscenes_words, f'backend_config.onnx_file={folder}']
    assert_both_say(run_ranks(tmp_path, [words, words]), 1, 'delete it to have it exported')


@pytest.fixture
def nuscenes_words(tmp_path):
    root = toy_nuscenes.write(tmp_path, val_scenes=1, frames=2)
    return [
        f'data.test.ann_file={root}/{toy_nuscenes.INFOS}',
        f'data.test.data_root={root}/',
        'data.workers_per_gpu=0',
    ]
