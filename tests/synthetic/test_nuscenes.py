"""The generated nuScenes drive: the devkit's own loader and evaluator take it, and its geometry is true."""

import colorsys
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

from mmdeploy_ext.cli.synthetic_app import main as synthetic
from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.synthetic import nuscenes as toy
from mmdeploy_ext.synthetic import nuscenes_scene, nuscenes_sensors, nuscenes_world
from mmdeploy_ext.synthetic.monocular import Tables
from mmdeploy_ext.synthetic.nuscenes_sensors import ray_box, render

SMALL = toy.SetOptions(2, 2, 8, seed=3, image_size=(160, 90), sweeps=1)
TINY = toy.SetOptions(1, 1, 2, seed=3, image_size=(48, 32))
HUES = {kind.name: kind.hue for kind in nuscenes_world.KINDS}


def file_hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('toy') / 'toy_nuscenes'
    assert toy.ensure_toy_nuscenes(folder, SMALL, jobs=1, quiet=True)
    return folder


@pytest.fixture(scope='module')
def nusc(root):
    from nuscenes.nuscenes import NuScenes

    return NuScenes('v1.0-trainval', str(root), verbose=False)


def key_frames(nusc, channel):
    """Yield (record, boxes in the sensor's frame) of the key frames of a channel."""
    for sample in nusc.sample:
        record = nusc.get('sample_data', sample['data'][channel])
        yield record, nusc.get_sample_data(record['token'])[1]


def class_name(box) -> str:
    from nuscenes.eval.detection.utils import category_to_detection_name

    return category_to_detection_name(box.name)


def test_the_devkit_loads_all_tables_and_every_link_leads_somewhere(nusc, root):
    from nuscenes.utils import splits

    assert [scene['name'] for scene in nusc.scene] == splits.train[:2] + splits.val[:2]
    assert len(nusc.sample) == 4 * 8
    for record in nusc.sample_data:
        assert (root / record['filename']).is_file()
        assert nusc.get('ego_pose', record['ego_pose_token'])['timestamp'] == record['timestamp']
    for table in ('sample', 'sample_data', 'sample_annotation'):
        for record in getattr(nusc, table):
            assert record['next'] == '' or nusc.get(table, record['next'])['prev'] == record['token']
    for instance in nusc.instance:
        first = nusc.get('sample_annotation', instance['first_annotation_token'])
        count = 1
        while first['next']:
            first, count = nusc.get('sample_annotation', first['next']), count + 1
        assert (first['token'], count) == (instance['last_annotation_token'], instance['nbr_annotations'])
    assert all(set(sample['data']) == {*nuscenes_sensors.CAMERAS, 'LIDAR_TOP'} for sample in nusc.sample)


def test_times_places_and_speeds_are_those_of_a_drive(nusc):
    for scene in nusc.scene:
        samples = [sample for sample in nusc.sample if sample['scene_token'] == scene['token']]
        stamps = np.array([sample['timestamp'] for sample in samples])
        assert (np.diff(stamps) == 500_000).all() and 1.5e15 < stamps[0] < 1.6e15
        poses = [nusc.get('ego_pose', sample['data']['LIDAR_TOP']) for sample in samples]
        places = np.array([pose['translation'] for pose in poses])
        assert places[:, 0].min() > 500 and (places[:, 2] == 0).all()
        assert (np.linalg.norm(np.diff(places, axis=0), axis=1) / 0.5 < 10).all()
        log = nusc.get('log', scene['log_token'])
        mask = nusc.get('map', log['map_token'])['mask']
        assert mask.is_on_mask(*places[:, :2].T).all()
        assert not mask.is_on_mask(places[:, 0] + 100, places[:, 1] + 100).any()


def test_worlds_are_full_and_all_classes_are_in_them():
    options = toy.SetOptions(image_size=(48, 32))
    seen = {'train': np.zeros(10, int), 'val': np.zeros(10, int)}
    for number, plan in enumerate(toy.plans(options)[-10:]):
        world = nuscenes_world.make_world(plan.rng(0), plan.frames, plan.drop_share)
        labels = np.array([thing.label for thing in world.things])
        seen['train' if number < 6 else 'val'] += np.bincount(labels, world.active.sum(0), 10).astype(int)
        assert world.active.sum(1).min() >= 6 and world.active.sum(1).max() <= 13
        assert 0.05 < (world.dropped > 0).mean() < 0.25
        assert not ((world.dropped[1:] > 0) & (world.dropped[:-1] > 0)).any()
        assert any(thing.speed > 0 for thing in world.things)
    assert seen['train'].min() > 60 and seen['val'].min() > 40


def test_objects_neither_touch_each_other_nor_the_ego():
    from shapely.geometry import Polygon

    def footprint(thing, time_s):
        return Polygon(
            rectangle(thing.wlh[1], thing.wlh[0]) @ turn(*thing.pose(time_s)).T[:2] + thing.pose(time_s)[0]
        )

    def rectangle(length, width):
        return np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * [length / 2, width / 2]

    def turn(_, yaw):
        return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])

    world = nuscenes_world.make_world(np.random.default_rng(1), 12, 0.2)
    for frame in range(12):
        time_s = frame * nuscenes_world.KEY_FRAME_S
        xy, yaw = world.drive.pose(time_s)
        ego = Polygon((rectangle(4.4, 1.8) + np.array([1.3, 0])) @ turn(xy, yaw).T + xy)
        shapes = [ego, *(footprint(thing, time_s) for thing in world.things)]
        for index, shape in enumerate(shapes):
            assert not any(shape.intersects(other) for other in shapes[index + 1 :])


def test_steady_motion_is_its_own_derivative():
    thing = nuscenes_world.Thing(0, np.array([2, 4, 1.5]), 3.0, np.array([10.0, 5.0]), 0.4, 6.0, 0.2, (0, 1))
    (before, _), (after, _), (_, yaw) = (thing.pose(time_s) for time_s in (4.999, 5.001, 5.0))
    velocity = (after - before) / 0.002
    np.testing.assert_allclose(velocity, 6 * np.array([np.cos(yaw), np.sin(yaw)]), rtol=1e-5)
    np.testing.assert_allclose(thing.pose(3.0)[0], [10, 5])


def _dropped_pictures() -> set[str]:
    """File names of the pictures in which the camera dropped out."""
    found = set()
    for plan in toy.plans(SMALL):
        scene = nuscenes_scene.make_scene(plan)
        for frame, number in zip(*np.nonzero(scene.world.dropped), strict=True):
            channel = nuscenes_sensors.CAMERAS[number]
            stamp = scene.timestamp(frame * 0.5 - nuscenes_sensors.CAMERA_LAG_US[channel] / 1e6)
            found.add(f'{scene.logfile}__{channel}__{stamp}.jpg')
    return found


def _hue_error(pixels: np.ndarray, hue: float) -> float:
    blue, green, red = np.median(pixels.reshape(-1, 3), axis=0) / 255
    return abs((colorsys.rgb_to_hsv(red, green, blue)[0] * 360 - hue + 180) % 360 - 180)


def test_box_centres_project_into_the_drawn_objects(nusc, root):
    dropped, errors = _dropped_pictures(), []
    for channel in nuscenes_sensors.CAMERAS:
        for record, boxes in key_frames(nusc, channel):
            if Path(record['filename']).name in dropped:
                continue
            image = cv2.imread(str(root / record['filename']))
            assert image.shape == (record['height'], record['width'], 3) == (90, 160, 3)
            calibration = nusc.get('calibrated_sensor', record['calibrated_sensor_token'])
            for box in boxes:
                x, y, depth = np.array(calibration['camera_intrinsic']) @ box.center
                column, row = round(x / depth), round(y / depth)
                whole = nusc.get('sample_annotation', box.token)['visibility_token'] == '4'
                if whole and 3 < depth < 14 and 2 <= column < 158 and 2 <= row < 88:
                    patch = image[row - 1 : row + 2, column - 1 : column + 2]
                    errors.append(_hue_error(patch, HUES[class_name(box)]))
    assert len(errors) > 80
    assert np.mean(np.array(errors) < 20) > 0.9  # the rest is hidden just where its middle is


def test_dropped_cameras_show_nothing_and_their_objects_stay_annotated(nusc, root):
    dropped, objects = _dropped_pictures(), 0
    for channel in nuscenes_sensors.CAMERAS:
        for record, boxes in key_frames(nusc, channel):
            image = cv2.imread(str(root / record['filename'])).astype(float)
            if Path(record['filename']).name in dropped:
                assert image.std() < 8 and (image.mean() < 20 or image.mean() > 225)
                objects += len(boxes)
            else:
                assert image.std() > 8
    assert objects > 10


def test_lidar_points_lie_on_the_boxes_they_are_counted_for_and_on_the_ground(nusc, root):
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counted = annotated = 0
    for record, boxes in key_frames(nusc, 'LIDAR_TOP'):
        raw = np.fromfile(root / record['filename'], np.float32).reshape(-1, 5)
        assert raw[:, 3].min() >= 0 and raw[:, 3].max() <= 255 and set(raw[:, 4]) <= set(range(32))
        points = LidarPointCloud.from_file(str(root / record['filename'])).points[:3]
        inside = np.zeros(points.shape[1], bool)
        for box in boxes:
            mine = points_in_box(box, points, wlh_factor=1.02) & ~inside
            inside |= mine
            counted += mine.sum()
            annotated += nusc.get('sample_annotation', box.token)['num_lidar_pts']
        calibration = nusc.get('calibrated_sensor', record['calibrated_sensor_token'])
        height = calibration['translation'][2]
        level = (Quaternion(calibration['rotation']).rotation_matrix @ points)[2] + height
        assert (np.abs(level[~inside & (raw[:, 3] < 18)]) < 0.05).mean() > 0.99
    assert counted == pytest.approx(annotated, rel=0.1) and annotated > 5000


def test_a_ray_meets_a_box_where_it_should():
    half, origin = np.array([1.0, 2.0, 3.0]), np.array([-5.0, 0.5, 0.0])
    rays = np.array([[2.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [1, 0.25, 0], [1, 1.0, 0]])
    hit, distance, axis = ray_box(origin, rays, half)
    assert hit.tolist() == [True, False, False, True, False]
    np.testing.assert_allclose(distance[[0, 3]], [2, 4])
    assert axis[0] == axis[3] == 0


def test_visibility_falls_where_objects_hide_each_other(nusc):
    grades = [record['visibility_token'] for record in nusc.sample_annotation]
    assert set(grades) <= {'1', '2', '3', '4'} and grades.count('4') > len(grades) / 2
    assert any(grade in '12' for grade in grades)
    assert min(record['num_lidar_pts'] for record in nusc.sample_annotation) >= 1


def _front_view(scene, things):
    """Return what the front camera sees of things."""
    lens = scene.lenses['CAM_FRONT']
    return render(lens, scene.scenery, scene.world, things, 0.0, 0, np.random.default_rng(0))


def test_nights_are_darker_than_days_and_both_are_in_every_set():
    scenes = [
        nuscenes_scene.make_scene(plan) for plan in toy.plans(toy.SetOptions(frames=2, image_size=(96, 54)))
    ]
    for split in (scenes[:32], scenes[32:]):
        assert {scene.world.night for scene in split} == {False, True}
    light = {night: [] for night in (False, True)}
    for scene in scenes[:16]:
        light[scene.world.night].append(_front_view(scene, []).image.mean())
    assert max(light[True]) < min(light[False])


def test_what_stands_behind_another_object_is_hidden():
    scene = nuscenes_scene.make_scene(toy.plans(SMALL)[0])
    xy, yaw = scene.world.drive.pose(0.0)
    ahead = np.array([np.cos(yaw), np.sin(yaw)])
    near, far = (
        nuscenes_world.Thing(
            label, np.array([2.0, 2.0, 2.0]), 0.0, xy + metres * ahead, yaw, 0.0, 0.0, (0, 1)
        )
        for label, metres in ((0, 9.0), (1, 14.0))
    )
    alone, both = _front_view(scene, [far]), _front_view(scene, [far, near])
    assert alone.visible[0] == alone.projected[0] > 50
    assert both.projected[0] == alone.projected[0] and both.visible[0] < 0.3 * both.projected[0]
    assert both.visible[1] == both.projected[1] > alone.projected[0]
    assert (_front_view(scene, [near, far]).image == both.image).all()


def _truth_as_predictions(nusc) -> dict:
    from nuscenes.eval.common.loaders import load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox

    results = {}
    truth = load_gt(nusc, 'val', DetectionBox)
    for token in truth.sample_tokens:
        results[token] = [
            {**box.serialize(), 'detection_score': 0.9, 'velocity': np.nan_to_num(box.velocity).tolist()}
            for box in truth[token]
        ]
    flags = dict.fromkeys(('use_camera', 'use_lidar', 'use_radar', 'use_map', 'use_external'), False)
    return {'meta': flags, 'results': results}


def test_the_devkit_gives_the_ground_truth_itself_map_and_nds_1(nusc, tmp_path):
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    (tmp_path / 'results.json').write_text(json.dumps(_truth_as_predictions(nusc)))
    evaluation = DetectionEval(
        nusc,
        config_factory('detection_cvpr_2019'),
        str(tmp_path / 'results.json'),
        'val',
        str(tmp_path / 'out'),
        verbose=False,
    )
    metrics = evaluation.evaluate()[0].serialize()
    assert metrics['mean_ap'] > 0.99 and metrics['nd_score'] > 0.99
    shifted = {key: value for key, value in metrics['mean_dist_aps'].items() if value < 0.99}
    assert not shifted


def test_equal_options_give_equal_bytes_on_any_number_of_processes(tmp_path):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    threads = cv2.getNumThreads()
    for name, jobs in (('one', 1), ('two', 2)):
        toy.ensure_toy_nuscenes(tmp_path / name, TINY, jobs=jobs, quiet=True)
    other = toy.SetOptions(1, 1, 2, seed=4, image_size=(48, 32))
    toy.ensure_toy_nuscenes(tmp_path / 'other', other, jobs=1, quiet=True)
    assert cv2.getNumThreads() == threads
    cv2.setNumThreads(before)
    one, two, rest = (file_hashes(tmp_path / name) for name in ('one', 'two', 'other'))
    assert one == two
    assert not {one[name] for name in one if name.endswith(('.jpg', '.bin'))} & set(rest.values())


def test_a_ready_set_is_left_alone_and_another_one_is_refused(tmp_path, monkeypatch, capsys):
    root = tmp_path / 'set'
    options = [
        '--root',
        str(root),
        '--train-scenes',
        '1',
        '--val-scenes',
        '1',
        '--frames',
        '2',
        '--seed',
        '3',
        '--image-size',
        '48',
        '32',
        '--jobs',
        '1',
    ]
    assert synthetic(['nuscenes', *options]) == 0
    assert '1 training and 1 validation scenes of 2 key frames made' in capsys.readouterr().out
    monkeypatch.setattr(toy, 'write_scene', lambda *_: pytest.fail('made again'))
    assert synthetic(['nuscenes', *options]) == 0
    assert 'nothing to do' in capsys.readouterr().out
    with pytest.raises(DataError, match=r"\{'frames'.*2\}.*\{'frames'.*3\}.*--force"):
        toy.ensure_toy_nuscenes(root, toy.SetOptions(1, 1, 3, 3, (48, 32)), quiet=True)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--seed', '-1'], '--seed: got -1'),
        (['--val-scenes', '0'], '--val-scenes: got 0'),
        (['--val-scenes', '151'], '--val-scenes: got 151, expected at most 150'),
        (['--frames', '1'], '--frames: got 1'),
        (['--frames', '1201'], '--frames: got 1201, expected at most 1200'),
        (['--image-size', '16', '200'], '--image-size: got 16 200'),
        (['--drop-share', '2'], '--drop-share: got 2.0'),
        (['--jobs', '0'], '--jobs: got 0'),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(tmp_path, capsys, options, message):
    assert synthetic(['nuscenes', '--root', str(tmp_path / 'set'), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and message in captured.err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        toy.ensure_toy_nuscenes(tmp_path / 'set', toy.SetOptions(frames=0))


def test_a_damaged_sweep_is_refused_by_name(root, tmp_path):
    tables = Tables(root)
    image = tables.image(0, next(tables.pictures(['scene-0001'])))
    assert tables.sweep(image).shape[1] == 4
    tables.root = tmp_path
    with pytest.raises(DataError, match=r'LIDAR_TOP.*pcd\.bin: cannot be read'):
        tables.sweep(image)
    for record in tables.tables['sample_data'].values():
        path = tmp_path / record['filename']
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'abc')
    with pytest.raises(DataError, match=r'LIDAR_TOP.*pcd\.bin: has 3 bytes'):
        tables.sweep(image)
