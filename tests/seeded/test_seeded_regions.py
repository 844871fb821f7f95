"""Seeded weights of heads of regions with as many classes as LVIS: some are over the score of a proof."""

import pytest

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.seeded.weights import fill_seeded
from seeded_results import find
from toy_atss import REPO

CLASSES = 1203
SEESAW = dict(
    cls_predictor_cfg=dict(type='NormedLinear', tempearture=20),
    loss_cls=dict(type='SeesawLoss', p=0.8, q=2.0, num_classes=CLASSES, loss_weight=1.0),
)


@pytest.mark.matrix
@pytest.mark.parametrize('head', [{}, SEESAW], ids=['softmax', 'normed'])
def test_of_a_thousand_classes_some_are_found(head):
    from mmdet.models import build_detector

    cfg = load_config(f'{REPO}/configs/demo/mask_rcnn_toy.py')
    cfg.model.backbone.init_cfg = None
    cfg.model.roi_head.mask_head = cfg.model.roi_head.mask_roi_extractor = None
    cfg.merge_from_dict({'model.roi_head.bbox_head': dict(head, num_classes=CLASSES)})
    cfg.merge_from_dict({'model.test_cfg.rcnn': dict(score_thr=1e-4, max_per_img=300)})
    model = fill_seeded(build_detector(cfg.model).eval())
    for found in find(model, cfg):
        assert (found.scores > 0.05).sum() > 20 and found.classes >= 5
        assert found.scores.max() < 0.999
