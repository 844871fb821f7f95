"""Frames, configs and checkpoints that do not fit BEVFusion; circle NMS."""

import dataclasses

import numpy as np
import pytest
import torch

import toy_bevfusion
from mm2onnx_driving.bevfusion.runtime import Circle, suppress
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli import export_app
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.detections3d import Detections3D

CONFIGS = {
    'another fuser': (dict(fuser=dict(type='AddFuser')), 'AddFuser'),
    'a map to draw': (dict(heads=dict(map=dict(type='BEVSegmentationHead'))), 'heads has map; expected'),
}  # fmt: skip


@pytest.mark.parametrize('kind', CONFIGS)
def test_a_config_of_other_parts_is_refused_by_name(tmp_path, kind):
    changes, words = CONFIGS[kind]
    merged = toy_bevfusion.merged(toy_bevfusion.CHANGES, changes)
    cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **merged))
    with pytest.raises(ConfigError, match=words):
        find_family(cfg).build(cfg)


def test_a_checkpoint_of_six_depth_channels_is_refused_by_name(tmp_path, capsys):
    config = toy_bevfusion.write_config(tmp_path / 'm.py')
    state = toy_bevfusion.seeded(load_config(config)).state_dict()
    name = 'encoders.camera.vtransform.dtransform.0.weight'
    torch.save(dict(state_dict={**state, name: state[name].expand(-1, 6, -1, -1)}), tmp_path / 'm.pth')
    words = [config, str(tmp_path / 'm.pth'), '--output-file', str(tmp_path / 'out')]
    assert export_app.main(words) == 2
    said = capsys.readouterr().err
    assert name in said


# ---- circle NMS


def test_pedestrians_too_near_to_a_better_one_are_left_out_and_cars_are_not():
    boxes = np.zeros((5, 9), np.float32)
    boxes[:, 0] = 0, 0.3, 0.6, 0.0, 0.1
    found = Detections3D(boxes, np.float32([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([8, 8, 8, 0, 0]))
    nms = Circle(classes=(8, 9), radius=0.175, most=83)
    assert suppress(found, nms).boxes[:, 0].tolist() == pytest.approx([0, 0.6, 0, 0.1])
    assert suppress(found, None) is found and len(suppress(found, dataclasses.replace(nms, most=1))) == 3


def test_the_head_leaves_out_what_the_runtime_leaves_out(tmp_path):
    changes = dict(heads=dict(object=dict(test_cfg=dict(nms_type='circle'))))
    merged = toy_bevfusion.merged(toy_bevfusion.CHANGES, changes)
    cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **merged))
    family = find_family(cfg)
    model = family.build(cfg)
    head = model.heads['object']
    generator = torch.Generator().manual_seed(0)
    one = dict(
        bboxes=torch.rand(200, 9, generator=generator) * 6,
        scores=torch.rand(200, generator=generator),
        labels=torch.randint(0, 10, (200,), generator=generator),
    )
    left = head.suppress(one)
    order = one['scores'].argsort(descending=True)
    arrays = (one[name][order].numpy() for name in ('bboxes', 'scores', 'labels'))
    found = suppress(Detections3D(*arrays), family.facts(model).nms)
    own = left['scores'].sort(descending=True).values.numpy()
    assert np.array_equal(found.scores, own) and 150 < len(own) < 200
