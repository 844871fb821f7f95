"""CrowdDet's suppression: the graph keeps the boxes that the model's own loop keeps."""

import copy

import numpy as np
import pytest
import torch
from mmcv import Config
from torch import nn

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import mmdet3_detectors_golden as golden
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.two_stage.boxes import of_pairs
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.spec.facts import NmsConfig
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.catalogue import MODELS_2D, register_all
from mmdeploy_ext.upstream.models.crowddet import set_nms
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model

CONFIG = NmsConfig(score_thr=0.2, iou_threshold=0.5, class_agnostic=False, nms_pre=-1, max_per_img=7)


class Pairs(nn.Module):
    def forward(self, boxes, scores):
        return of_pairs(boxes, scores, CONFIG)


def drawn(count, generator):
    """Return whole numbers as boxes (2, count, 4), and scores (2, count) in steps of 1/128, no two equal."""
    corner, size = (torch.randint(20, (2, count, 2), generator=generator) for _ in range(2))
    boxes = torch.cat([corner, corner + size + 5], 2).to(torch.float32)
    scores = torch.stack([torch.randperm(128, generator=generator)[:count] for _ in range(2)]) / 128
    return boxes, torch.where(scores > CONFIG.score_thr, scores, NO_CANDIDATE)


def test_the_graph_keeps_the_boxes_of_the_models_own_loop():
    generator, axes = torch.manual_seed(0), dict(boxes={1: 'N'}, scores={1: 'N'})
    names = dict(input_names=('boxes', 'scores'), output_names=('dets', 'labels'))
    file = Runner(export_module(Pairs(), drawn(20, generator), dynamic=axes, **names))
    for count in (20, 60, 2, 0):
        boxes, scores = drawn(count, generator)
        found = file.run(dict(boxes=boxes.numpy(), scores=scores.numpy()))
        for image in range(2):
            kept = set_nms(boxes[image], scores[image], CONFIG.score_thr, CONFIG.iou_threshold)
            kept = kept[: CONFIG.max_per_img]
            rows = torch.cat([boxes[image, kept], scores[image, kept, None]], 1)
            rows = rows[rows[:, 4].argsort(descending=True)]
            present = found['labels'][image] == 0
            np.testing.assert_array_equal(found['dets'][image][present], rows.numpy())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(form='regions'), '^--postprocess regions'),
        (dict(max_proposals=9, max_candidates=9), '^--max-candidates 9|^--max-proposals 9'),
    ],
)
def test_graphs_of_single_boxes_are_refused(options, message):
    register_all(MODELS_2D)
    cfg = Config(dict(model=to_mmdet2_model(copy.deepcopy(golden.CASES['crowddet']))))
    family = find_family(cfg)
    with pytest.raises(UsageError, match=message):
        family.check(cfg, Options(family.options, height=96, width=128, opset=17, **options))
