"""BEVFusion with cameras alone, and with LiDAR alone."""

import dataclasses

import numpy as np
import pytest

import toy_bevfusion
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, DataError, ShapeError
from mmdeploy_ext.proof.ladder import prove
from mmdeploy_ext.runtime.bevfusion_det.model import OPENS
from planting import replaced, result, when_traced

FILES = dict(camera=['rig', 'frame'], lidar=['lidar', 'frame'])
SENSORS = pytest.mark.parametrize('sensor', FILES)


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    return {
        sensor: toy_bevfusion.toy(tmp_path_factory.mktemp(sensor), **toy_bevfusion.alone(sensor))
        for sensor in FILES
    }


@SENSORS
def test_one_sensor_is_exported_in_its_files_and_proven(toys, tmp_path, sensor):
    toy = toys[sensor]
    paths = toy_bevfusion.export(toy, tmp_path)
    assert [path.rsplit('/', 1)[1] for path in paths] == [f'{name}.onnx' for name in FILES[sensor]]
    frames = list(toy.family.generated_sweeps(toy.rule, 3))
    verdict, _ = prove(toy, paths, frames)
    assert verdict.passed, verdict.reasons
    assert verdict.summary()['matched'] >= 30
    with OPENS(tmp_path) as runtime:
        found = runtime.step(frames[0])
        assert len(found.detections) and set(runtime.seconds) == set(FILES[sensor])
        if sensor == 'camera':
            with pytest.raises(ShapeError, match='there are none'):
                runtime.step(dataclasses.replace(frames[0], images=None))
        else:
            with pytest.raises(DataError, match='the sweep is empty'):
                runtime.step(dataclasses.replace(frames[0], points=np.zeros((0, 5), np.float32)))


@pytest.mark.matrix
def test_a_fault_of_cameras_alone_is_refused(toys, tmp_path):
    toy, place = toys['camera'], 'projects.mmdet3d_plugin.bevfusion.view_transform:ViewTransform.pool'
    make = result(lambda seen, *_: seen.transpose(2, 3))
    with replaced(place, lambda original: when_traced(lambda _, *args: make(original)(*args))(original)):
        verdict, _ = prove(
            toy, toy_bevfusion.export(toy, tmp_path), list(toy.family.generated_sweeps(toy.rule, 1))
        )
    assert not verdict.passed


@SENSORS
def test_the_files_of_the_engine_take_both(toys, sensor):
    toy = toys[sensor]
    with pytest.raises(ConfigError, match=r'model.encoders has no \w+: --contract cuda-bevfusion takes both'):
        toy.family.check(toy.cfg, toy.family.choose(contract='cuda-bevfusion'))


def test_depth_of_points_without_points_is_refused_by_name(tmp_path):
    changes = toy_bevfusion.alone('camera')
    changes['encoders']['camera']['vtransform'].pop('type')
    cfg = load_config(toy_bevfusion.write_config(tmp_path / 'm.py', **changes))
    toy = toy_bevfusion.find_family(cfg)
    with pytest.raises(ConfigError, match="'DepthLSSTransform' looks at points, and there is no LiDAR"):
        toy.check(cfg, toy.choose())
