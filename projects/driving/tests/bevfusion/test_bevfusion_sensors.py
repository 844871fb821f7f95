"""BEVFusion with cameras alone, of both heads, and with LiDAR alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import toy_bevfusion
from mm2onnx_driving.bevfusion.fusion import GeneralizedLSSFPN
from mm2onnx_driving.bevfusion.runtime import OPENS
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, DataError, ShapeError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.runtime.infos import RigFrame
from proofs import prove

FILES = dict(camera=['rig', 'frame'], lidar=['lidar', 'frame'], centers=['rig', 'frame'])


@pytest.mark.matrix
@pytest.mark.parametrize('sensor', FILES)
def test_one_sensor_is_exported_in_its_files_and_proven(tmp_path, sensor):
    toy = toy_bevfusion.toy(tmp_path, **toy_bevfusion.alone(sensor))
    paths = toy_bevfusion.export(toy, tmp_path / 'files')
    assert [path.rsplit('/', 1)[1] for path in paths] == [f'{name}.onnx' for name in FILES[sensor]]
    frames = list(toy.family.data.generated_sweeps(toy.rule, 3))
    verdict = prove(toy, paths, frames)
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 30
    with OPENS(Path(paths[0]).parent) as runtime:
        found = runtime.step(frames[0])
        assert len(found.detections) and set(runtime.seconds) == set(FILES[sensor])
        if sensor != 'lidar':
            with pytest.raises(ShapeError, match='pictures'):
                runtime.step(dataclasses.replace(frames[0], images=None))
        else:
            with pytest.raises(DataError, match='empty'):
                runtime.step(dataclasses.replace(frames[0], points=np.zeros((0, 5), np.float32)))
            sweep = tmp_path / 'sweep.bin'
            frames[0].points.tofile(sweep)
            no_cameras = np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), np.eye(4)
            rig = RigFrame('a', (), *no_cameras, 0.0, None, dict(lidar_path=str(sweep)), sweep)
            assert np.array_equal(runtime.detect((), rig).boxes, found.detections.boxes)


@pytest.mark.parametrize('sensor', ['camera', 'lidar'])
def test_the_files_of_the_engine_take_both(tmp_path, sensor):
    cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **toy_bevfusion.alone(sensor)))
    with pytest.raises(ConfigError, match=r'model\.encoders'):
        contract_of(find_family(cfg), dict(contract='cuda-bevfusion')).check(cfg)


def test_a_neck_enlarges_maps_as_the_original_does_if_its_config_does_not_say():
    torch.manual_seed(0)
    neck, maps = GeneralizedLSSFPN([2, 3], 4).eval(), (torch.rand(1, 2, 6, 6), torch.rand(1, 3, 3, 3))
    corners = dict(mode='bilinear', align_corners=True)
    named = GeneralizedLSSFPN([2, 3], 4, upsample_cfg=corners).eval()
    named.load_state_dict(neck.state_dict())
    assert torch.equal(neck(maps)[0], named(maps)[0])
    bare = GeneralizedLSSFPN([2, 3], 4, norm_cfg=None, act_cfg=None)
    assert not [key for key in bare.state_dict() if '.bn.' in key] and bare(maps)[0].min() < 0
