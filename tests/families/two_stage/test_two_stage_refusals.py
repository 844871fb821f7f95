"""What is wrong for two-stage detectors alone: classes, proposals, entries of another kind."""

import mmcv
import numpy as np
import pytest

from refusals import REPOSITORY
from toy_two_stage import toy, write_config

CHECKPOINT = REPOSITORY / 'demo/checkpoints/mask_rcnn_toy.pth'
MASKS = REPOSITORY / 'configs/demo/mask_rcnn_toy.py'


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('model.roi_head.bbox_head.num_classes=7', ['mask_rcnn_toy.pth', 'fc_cls.bias: (7,)']),
        ('model.roi_head.mask_head.num_classes=7', ['mask_rcnn_toy.pth', 'conv_logits.bias: (6,)']),
        ('model.test_cfg.rpn=none', ['model.test_cfg.rpn']),
        ('model.roi_head.bbox_head=None', ['model.roi_head.bbox_head']),
        ('model.rpn_head.bbox_coder.target_stds=0.5', ['target_stds=0.5']),
    ],
)
def test_an_entry_that_does_not_fit(override, words, bench):
    more = f'--cfg-options {override}'
    bench.refuses('export', *words, config=MASKS, checkpoint=CHECKPOINT, more=more)


def test_proposals_that_are_missing_are_asked_for_before_the_weights_load(bench):
    bench.data()
    cfg = toy('fast')
    config = write_config(cfg, bench.folder / 'fast.py')
    bench.refuses('test', 'data.test.proposal_file', config=config, checkpoint='no.pth')
    mmcv.dump([np.float32([[4, 4, 40, 40, 1]])], bench.folder / 'proposals.pkl')
    cfg.data.test.update(proposal_file=str(bench.folder / 'proposals.pkl'))
    config = write_config(cfg, bench.folder / 'fast.py')
    bench.refuses('test', 'data.test.pipeline', 'LoadProposals', config=config, checkpoint='no.pth')
