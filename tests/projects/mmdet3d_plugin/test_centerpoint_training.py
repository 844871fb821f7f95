"""What the training of CenterPoint adds to mmdet3d."""

import math

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.builder import PIPELINES

from mmdeploy_ext.core.config import load_config
from toy_atss import REPO


def boxes(yaws):
    rows = [[1.0, 2.0, 0.0, 2.0, 4.0, 1.5, yaw, 3.0, -1.0] for yaw in yaws]
    return LiDARInstance3DBoxes(torch.tensor(rows), box_dim=9)


def test_opposite_headings_become_one_and_nothing_else_changes():
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    yaws = [0.4, 0.4 - math.pi, 0.4 + math.pi, -0.4, 3.0, -7.0]
    before = boxes(yaws).tensor.clone()
    results = PIPELINES.build(dict(type='FoldHeading'))(dict(gt_bboxes_3d=boxes(yaws)))
    after = results['gt_bboxes_3d'].tensor
    assert ((after[:, 6] >= 0) & (after[:, 6] < math.pi)).all()
    np.testing.assert_allclose(after[:3, 6], 0.4, atol=1e-6)
    np.testing.assert_allclose(np.tan(after[:, 6]), np.tan(yaws), rtol=1e-4)  # the axis is the same
    others = [column for column in range(9) if column != 6]
    torch.testing.assert_close(after[:, others], before[:, others])


def test_no_box_at_all_stays_none():
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    empty = LiDARInstance3DBoxes(torch.zeros((0, 9)), box_dim=9)
    results = PIPELINES.build(dict(type='FoldHeading'))(dict(gt_bboxes_3d=empty))
    assert len(results['gt_bboxes_3d']) == 0


def test_the_toy_config_trains_on_what_it_is_tested_on():
    cfg = load_config(str(REPO / 'projects/configs/BEVFusion/centerpoint_toy.py'))
    train, test = (
        [step for step in pipeline if step['type'] == 'LoadPointsFromFile']
        for pipeline in (cfg.data.train.pipeline, cfg.data.test.pipeline)
    )
    assert train == test
    kinds = [step['type'] for step in cfg.data.train.pipeline]
    # a yaw that is folded before it is turned or mirrored is no longer folded
    assert kinds.index('FoldHeading') > max(kinds.index('GlobalRotScaleTrans'), kinds.index('RandomFlip3D'))
    assert cfg.data.train.ann_file != cfg.data.test.ann_file
