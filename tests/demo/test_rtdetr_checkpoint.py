"""The published toy RT-DETR: plain data, small, as good as its page says, by both engines."""

import re

import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.synthetic.scene import CLASSES

CHECKPOINTS = toy_rtdetr.REPO / 'demo/checkpoints'
CHECKPOINT = CHECKPOINTS / 'rtdetr_toy.pth'
BAR, PARITY = 0.35, 0.0005

if not CHECKPOINT.is_file():
    pytest.skip('skipped: demo/checkpoints/rtdetr_toy.pth is not published yet', allow_module_level=True)


def test_the_checkpoint_is_small_and_plain():
    assert CHECKPOINT.stat().st_size <= 8e6
    content = torch.load(CHECKPOINT, map_location='cpu', weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert tuple(content['meta']['CLASSES']) == CLASSES


@pytest.mark.matrix  # in the suite: that both engines have the same (tools/test_rtdetr_loop.py)
def test_both_engines_have_the_ap_that_its_page_states(tmp_path):
    ensure_toy_coco(tmp_path / 'set', train_images=1, quiet=True)  # val2017 is that of the full set
    reference, candidate = toy_rtdetr.evaluate_both(tmp_path, str(CHECKPOINT), tmp_path / 'set')
    assert all(abs(reference[key] - candidate[key]) <= PARITY for key in reference)
    page = (CHECKPOINTS / 'README.md').read_text()
    stated = float(re.search(r'`rtdetr_toy\.pth` \|.*?\| \*\*(0\.\d+)\*\* \|', page).group(1))
    assert reference['bbox_mAP'] == pytest.approx(stated, abs=2e-3)
    assert reference['bbox_mAP'] >= BAR
