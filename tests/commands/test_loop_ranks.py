"""The test loop on two processes started by hand, of which the first one alone fails: none of them hangs."""

import pytest

from rank_processes import run_ranks
from toy_atss import CHECKPOINT, CONFIG

TOOL = ('tools/test.py', '--eval', 'bbox', '--launcher', 'pytorch')


def assert_both_say(ended, status, message):
    for rank, (code, _, error) in enumerate(ended):
        line = error.strip().splitlines()[-1]
        assert (code, line.startswith('error: ')) == (status, True), error
        assert message in line and ('process 0 of 2 failed' in line) == (rank == 1), line


@pytest.mark.matrix
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
