"""Sweeps for calibration: folders and infos, against mmdet3d's own loading; what is refused."""

import dataclasses
import pickle

import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.preprocess.points import PointRule
from mmdeploy_ext.runtime.sweeps import Sweeps

RULE = PointRule(5, (0, 1, 2, 3, 4))


def keep(points):
    """A voxelisation that shows its points."""
    return points, np.zeros((len(points), 4), np.int32)


def cloud(seed, points=200):
    values = np.random.default_rng(seed).uniform(-5, 5, (points, 5)).astype(np.float32)
    values[:, 4] = seed
    return values


def write(folder, seeds, ending='.bin'):
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        path = folder / f'sweep{seed}{ending}'
        cloud(seed).tofile(path) if ending == '.bin' else np.save(path, cloud(seed))
    return folder


def infos_of(folder, count=3):
    """As mmdet3d's create_data.py writes them: paths of another machine below samples/ and sweeps/."""
    write(folder / 'samples', range(count))
    write(folder / 'sweeps', range(100, 104))
    infos = []
    for index in range(count):
        angle = 0.1 * (index + 1)
        rotation = np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        )
        past = [
            dict(
                data_path=f'./elsewhere/sweeps/sweep{100 + number}.bin',
                sensor2lidar_rotation=rotation,
                sensor2lidar_translation=np.array([number, 0.5, -0.25]),
                timestamp=1532402927647951 - 50000 * number,
            )
            for number in range(4)
        ]
        path = f'./elsewhere/samples/sweep{index}.bin'
        infos.append(dict(lidar_path=path, timestamp=1532402927700000, sweeps=past, token=str(index)))
    return infos


def dump(folder, content, name='infos.pkl'):
    (folder / name).write_bytes(pickle.dumps(content))
    return folder / name


def test_a_folder_gives_its_sweeps_in_order_of_names(tmp_path):
    write(tmp_path / 'a', [2, 1])
    write(tmp_path / 'a', [3], '.npy')
    np.savez(tmp_path / 'a/z.npz', features=cloud(9), coordinates=np.arange(800).reshape(200, 4))
    (tmp_path / 'a/readme.txt').write_text('not a sweep')
    sweeps = Sweeps(tmp_path / 'a', keep, RULE)
    assert len(sweeps) == 4
    found = list(sweeps)
    for (features, _), seed in zip(found, [1, 2, 3, 9], strict=True):
        np.testing.assert_array_equal(features, cloud(seed))
    np.testing.assert_array_equal(found[3][1][1], [4, 5, 6, 7])


def test_a_limit_takes_sweeps_evenly(tmp_path):
    sweeps = Sweeps(write(tmp_path / 'a', range(9)), keep, RULE, limit=3)
    assert [int(features[0, 4]) for features, _ in sweeps] == [0, 4, 8]
    assert len(Sweeps(tmp_path / 'a', keep, RULE, limit=99)) == 9


@pytest.mark.parametrize(('remove_close', 'pad'), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize('past', [2, 10])
def test_infos_with_past_sweeps_give_mmdet3ds_points(tmp_path, past, remove_close, pad):
    from mmdet3d.datasets.pipelines import LoadPointsFromFile, LoadPointsFromMultiSweeps

    infos = infos_of(tmp_path)
    infos.append(dict(infos[-1], sweeps=[]))
    options = dict(sweeps_num=past, use_dim=[0, 1, 2, 4], remove_close=remove_close, pad_empty_sweeps=pad)
    steps = [
        dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5),
        dict(type='LoadPointsFromMultiSweeps', **options),
    ]
    rule = PointRule.from_pipeline(steps, 4)
    sweeps = Sweeps(dump(tmp_path, dict(infos=infos)), keep, rule, root=tmp_path)
    load = LoadPointsFromFile(**{key: value for key, value in steps[0].items() if key != 'type'})
    merge = LoadPointsFromMultiSweeps(
        test_mode=True, **{key: value for key, value in steps[1].items() if key != 'type'}
    )
    for (points, _), info in zip(sweeps, infos, strict=True):
        past_sweeps = [
            past_sweep | dict(data_path=past_sweep['data_path'].replace('./elsewhere', str(tmp_path)))
            for past_sweep in info['sweeps']
        ]
        expected = merge(
            load(dict(pts_filename=info['lidar_path'].replace('./elsewhere', str(tmp_path))))
            | dict(timestamp=info['timestamp'] / 1e6, sweeps=past_sweeps)
        )
        np.testing.assert_array_equal(points, expected['points'].tensor.numpy())


def test_options_that_a_pipeline_leaves_out_are_mmdet3ds():
    from mmdet3d.datasets.pipelines import LoadPointsFromFile, LoadPointsFromMultiSweeps

    load, merge = LoadPointsFromFile('LIDAR'), LoadPointsFromMultiSweeps()
    steps = [dict(type='LoadPointsFromFile'), dict(type='LoadPointsFromMultiSweeps')]
    alone = PointRule.from_pipeline(steps[:1], 4)
    assert (alone.load_dim, [*alone.use_dim], alone.past) == (load.load_dim, load.use_dim, None)
    rule = PointRule.from_pipeline([dict(steps[0], load_dim=merge.load_dim, use_dim=5), steps[1]], 4)
    assert dataclasses.astuple(rule.past) == (merge.sweeps_num, merge.pad_empty_sweeps, merge.remove_close)
    assert [*rule.past_dim] == merge.use_dim


def test_a_sweep_that_cannot_be_read_is_named_when_its_turn_comes(tmp_path):
    folder = write(tmp_path / 'a', [1])
    (folder / 'torn.bin').write_bytes(b'123')
    turns = iter(Sweeps(folder, keep, RULE))
    next(turns)
    with pytest.raises(DataError, match=r'torn\.bin.*3.*20'):
        next(turns)
