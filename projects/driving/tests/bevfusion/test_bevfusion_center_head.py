"""CenterPoint's head on BEVFusion's map: boxes there and back, the published names, what is refused."""

import dataclasses

import numpy as np
import torch
from mmdet3d.models.builder import build_head

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_bevfusion
from mm2onnx_driving.bevfusion.fusion import HEADS
from mm2onnx_driving.bevfusion.runtime import Circle, Rotated, suppress
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.detections3d import Detections3D
from toy_atss import REPO

HEAD = toy_bevfusion.CENTERS['heads']['object']
CELLS, STEP, ORIGIN = (24, 20), 1.6, torch.tensor([-19.2, -16.0])


def head(**changes):
    """Return the head of the toy; changes of `test_cfg` and others."""
    changes['test_cfg'] = dict(HEAD['test_cfg'], **changes.get('test_cfg', {}))
    config = {key: value for key, value in HEAD.items() if key != '_delete_'}
    return build_head(dict(config, **dict(changes, type=HEADS['CenterHead'])))


def maps_of(model, boxes, labels):
    """Return the maps that stand for boxes (n, 9), bottom centres, in the model's columns."""
    found = [
        {name: torch.zeros(1, count, *CELLS) for name, (count, _) in HEAD['common_heads'].items()}
        | dict(heatmap=torch.full((1, count, *CELLS), -20.0))
        for count in model.counts
    ]
    firsts = np.cumsum([0, *model.counts])
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        task = int(np.searchsorted(firsts, label, side='right')) - 1
        place = (box[:2] - ORIGIN) / STEP
        row, column = (int(value) for value in place)
        values = dict(
            reg=place - place.floor(),
            height=box[2:3] + box[5:6] / 2,
            dim=box[3:6].log(),
            rot=torch.stack([box[6].sin(), box[6].cos()]),
            vel=box[7:9],
        )
        for name, value in values.items():
            found[task][name][0, :, row, column] = value
        found[task]['heatmap'][0, label - firsts[task], row, column] = 5.0 - index
    return found


BOXES = torch.tensor(
    [
        [-10.3, 4.1, -1.0, 1.9, 4.5, 1.6, 0.4, 1.0, -2.0],
        [12.7, -15.2, -0.5, 2.5, 8.0, 3.0, -2.0, 0.0, 0.5],
        [3.3, 14.7, -1.5, 0.6, 0.7, 1.8, 3.0, 0.3, 0.2],
    ]
)
LABELS = torch.tensor([0, 4, 8])


def test_boxes_there_and_back_by_both_ways():
    model = head().eval()
    found = maps_of(model, BOXES, LABELS)
    (own,) = model.get_bboxes(found)
    order = own['scores'].argsort(descending=True)
    torch.testing.assert_close(own['bboxes'][order], BOXES, rtol=1e-5, atol=1e-5)
    assert own['labels'][order].tolist() == LABELS.tolist()
    boxes, scores, labels = (values[0] for values in model.candidates(found))
    rows = torch.nonzero(labels >= 0)[:, 0]
    rows = rows[scores[rows].argsort(descending=True)]
    torch.testing.assert_close(boxes[rows], BOXES, rtol=1e-5, atol=1e-5)
    assert labels[rows].tolist() == LABELS.tolist()


def test_groups_of_classes_are_thinned_out_by_their_own_rule():
    boxes = np.float32([[0, 0, 0, 2, 1, 1, 0, 0, 0], [1.9, 0, 0, 2, 1, 1, 0, 0, 0]] * 2)
    scores, labels = np.float32([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 3])
    given = Detections3D(boxes, scores, labels)
    circle = Circle(classes=[0], most=9, radius=4.0)
    rotated = Rotated(classes=[1, 3], most=9, overlap=0.1, first=9, scales=[1.0, 1.0])
    assert suppress(given, [circle]).scores.tolist() == scores[[0, 2, 3]].tolist()
    assert len(suppress(given, [rotated])) == 4
    wide = dataclasses.replace(rotated, scales=(1.0, 2.0))
    assert suppress(given, [circle, wide]).scores.tolist() == scores[[0, 2]].tolist()
    assert suppress(given, [dataclasses.replace(wide, first=1)]).scores.tolist() == scores[:3].tolist()
    assert len(suppress(given, [dataclasses.replace(wide, overlap=0.2)])) == 4  # of 8 m2, not 4
    for rule in (rotated, dataclasses.replace(circle, classes=(1, 3), radius=1.0)):
        assert suppress(given, [dataclasses.replace(rule, most=1)]).scores.tolist() == scores[:3].tolist()
    one_for_each = Circle(classes=[1, 3], most=9, radius=9.0)  # as files of TransFusion's head have it
    assert len(suppress(given, one_for_each)) == 4
    assert len(suppress(given, [one_for_each])) == 3


def test_the_published_config_has_the_names_of_the_original():
    cfg = load_config(f'{REPO}/projects/configs/BEVFusion/bevfusion_camera_swint_nus.py')
    model = find_family(cfg).build(cfg)
    keys = model.state_dict()
    assert len(keys) == 637 and model.encoders['camera']['vtransform'].shape == (256, 256)
    for key, shape in {
        'decoder.backbone.1.0.downsample.0.weight': (256, 128, 1, 1),
        'decoder.neck.fuse.0.weight': (256, 640, 1, 1),
        'decoder.neck.upsample.1.weight': (256, 256, 3, 3),
        'heads.object.shared_conv.conv.weight': (64, 256, 3, 3),
        'heads.object.task_heads.5.heatmap.0.conv.weight': (64, 64, 3, 3),
        'heads.object.task_heads.5.heatmap.1.bias': (2,),
        'heads.object.task_heads.0.vel.1.weight': (2, 64, 3, 3),
    }.items():
        assert keys[key].shape == shape, key
