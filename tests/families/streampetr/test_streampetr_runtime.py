"""The streaming runtime is the unpatched model, frame by frame; its memory, resets and what it refuses."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import toy_streampetr_export as toy
from marking import in_suite
from mmdeploy_ext.consumers.streampetr_fork.loop import ForkOnnx
from mmdeploy_ext.core.errors import DataError, EngineError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.families.parts.runtime.query_boxes import QueryBoxFacts
from mmdeploy_ext.families.streampetr.memory import to_global, to_local
from mmdeploy_ext.families.streampetr.runtime import StreamPetrOnnx, decode
from mmdeploy_ext.preprocess.cameras import Calibration
from mmdeploy_ext.runtime.geometry import invert_pose, relative_motion
from toy_streampetr import HEIGHT, NUM_CAMS, WIDTH
from toy_streampetr_deploy import export

REPOSITORY = Path(__file__).resolve().parents[3]
GOLDEN = REPOSITORY.parent / 'shared' / 'golden' / 'streampetr'
FORKS = [(version, form) for version in ('1.0', '1.1') for form in ('token', 'depth')]
BOX = np.array([5e-3] * 3 + [1e-3] * 7)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('deploy')
    toy.write(path)
    return path


@pytest.fixture(scope='module')
def fork(tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp('fork'), 'fork')[0]


@pytest.fixture
def runtime(folder):
    with StreamPetrOnnx(folder, threads=1) as opened:
        yield opened


def drive():
    """Two scenes; the second begins with the same pictures as the first."""
    return [toy.frame(i) for i in range(5)] + [toy.frame(i, 'scene1') for i in range(3)]


def assert_close(found, wanted):
    np.testing.assert_allclose(found['all_cls_scores'], wanted['all_cls_scores'], rtol=0, atol=1e-3)
    assert (np.abs(found['all_bbox_preds'] - wanted['all_bbox_preds']) <= BOX).all()


def calibration_of(frame):
    return Calibration(frame.lidar2img, frame.intrinsics)


# ---- the same numbers


def check_against_eager(path, opens=StreamPetrOnnx):
    frames = drive()
    with opens(path, threads=1, max_gap_s=None) as opened:
        for index, (frame, wanted) in enumerate(zip(frames, toy.eager(frames), strict=True)):
            result = opened.step(frame)
            assert result.was_reset == (index in (0, 5))
            assert_close(result.outputs, wanted)
            np.testing.assert_allclose(result.detections.scores, wanted['scores'], rtol=0, atol=1e-3)
            state = to_local(wanted['state'], frame.ego_pose, frame.timestamp_s)
            for field, values in opened.state.tensors.items():
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, state[field], rtol=0, atol=5e-3, err_msg=field)


def test_deploy_files_equal_the_unpatched_model_over_a_scene_change(folder):
    check_against_eager(folder)


@pytest.mark.suite('1.1-depth')
@pytest.mark.parametrize(('version', 'form'), in_suite(FORKS, ('1.0', 'token'), ('1.1', 'depth')))
def test_fork_files_equal_the_unpatched_model_over_a_scene_change(tmp_path, version, form):
    path = toy.write(tmp_path, 'fork', fork_version=version, fork_img2lidar=form)[0]
    check_against_eager(path, ForkOnnx)


def test_the_memory_matters(folder):
    frames = drive()[:3]
    with StreamPetrOnnx(folder, threads=1) as opened:
        kept = [opened.step(frame) for frame in frames][-1]
        opened.reset()
        alone = opened.step(frames[-1])
    assert np.abs(kept.outputs['all_cls_scores'] - alone.outputs['all_cls_scores']).max() > 0.05


def test_a_drive_is_the_same_700_km_away_and_50_years_later(folder):
    near = [toy.frame(i) for i in range(6)]
    with StreamPetrOnnx(folder, threads=1) as opened:
        here = [opened.step(frame).outputs for frame in near]
        opened.reset()
        # whole metres and powers of two, so that the shifted poses and times are the same numbers in float64
        there = [opened.step(toy.far(frame, 700000.0, 2.0**31)).outputs for frame in near]
    for one, two in zip(here, there, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(two[name], values, rtol=0, atol=2e-4)


@pytest.mark.suite('1.1-700 km')
@pytest.mark.parametrize(
    'metres', [pytest.param(0.0, id='1.7 km', marks=pytest.mark.matrix), pytest.param(700000.0, id='700 km')]
)
@pytest.mark.parametrize('version', ['1.0', '1.1'])
def test_a_fork_file_keeps_a_millimetre_at_the_coordinates_of_a_map(tmp_path, version, metres):
    """The reference is the model in float64. Fed with map coordinates, the same file is 2 mm off or more."""
    frames = [toy.far(toy.frame(index), metres, 0.0) for index in range(8)]
    frames = [dataclasses.replace(one, ego_pose_inv=invert_pose(one.ego_pose)) for one in frames]
    wanted = [result['all_bbox_preds'][-1, 0, :, :3] for result in toy.eager(frames, dtype=torch.float64)]
    errors = {}
    for way in ('near', 'map'):
        with ForkOnnx(*toy.write(tmp_path, 'fork', fork_version=version), threads=1) as opened:
            if way == 'map':
                opened.origin = lambda pose: np.zeros(3)
            found = [opened.step(frame).outputs['all_bbox_preds'][-1, 0, :, :3] for frame in frames]
        errors[way] = max(np.abs(one - two).max() for one, two in zip(found, wanted, strict=True))
    print(f'fork {version}: {1e3 * errors["near"]:.3f} mm, by map coordinates {1e3 * errors["map"]:.2f} mm')
    assert errors['near'] < 1e-3 < errors['map']


def test_results_of_a_frame_outlive_the_next_frame(runtime):
    first = runtime.step(toy.frame(0)).outputs
    state = runtime.state.tensors
    kept = [{name: values.copy() for name, values in group.items()} for group in (first, state)]
    runtime.step(toy.frame(1))
    runtime.step(toy.frame(2))
    for group, copy in zip((first, state), kept, strict=True):
        for name, values in copy.items():
            np.testing.assert_array_equal(group[name], values)


def test_steps_with_images_equal_steps_with_prepared_frames(folder):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*toy.RULE.source, 3), np.uint8) for _ in range(NUM_CAMS)]
    frame = dataclasses.replace(toy.frame(0), images=toy.RULE.apply(images))
    with StreamPetrOnnx(folder, threads=1) as one, StreamPetrOnnx(folder, threads=1) as two:
        rig = calibration_of(frame)
        found = one.detect(images, rig, frame.ego_pose, frame.timestamp_s, frame.scene_token)
        wanted = two.step(frame).detections
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    assert len(found) == 20 and found.boxes.shape == (20, 9)


@pytest.mark.parametrize('contract', in_suite(['deploy', 'fork'], 'deploy'))
def test_half_precision_inputs_and_memory_run_too(tmp_path, contract):
    frames = [toy.frame(i) for i in range(3)]
    paths = export(tmp_path, contract=contract, precision='fp16', fp16_io=True)
    with (StreamPetrOnnx if contract == 'deploy' else ForkOnnx)(paths, threads=1) as opened:
        for frame, wanted in zip(frames, toy.eager(frames), strict=True):
            found = opened.step(frame).outputs['all_cls_scores']
            assert found.dtype == np.float32 and opened.state.tensors['embedding'].dtype == np.float32
            np.testing.assert_allclose(found, wanted['all_cls_scores'], rtol=0, atol=0.05)


# ---- state


@pytest.mark.parametrize('second', ['deploy', 'fork'])
def test_another_runtime_continues_from_a_state(folder, fork, second):
    frames = [toy.frame(i) for i in range(5)]
    with (
        StreamPetrOnnx(folder, threads=1) as one,
        StreamPetrOnnx(folder, threads=1) if second == 'deploy' else ForkOnnx(fork, threads=1) as two,
    ):
        for frame in frames[:3]:
            one.step(frame)
        two.state = one.state
        for frame in frames[3:]:
            kept, continued = one.step(frame), two.step(frame)
            assert not continued.was_reset
            assert_close(continued.outputs, kept.outputs)


def test_no_state_is_an_empty_memory(runtime):
    assert runtime.state is None
    first = runtime.step(toy.frame(0)).outputs
    runtime.state = None
    again = runtime.step(toy.frame(0))
    assert again.was_reset
    np.testing.assert_array_equal(again.outputs['all_cls_scores'], first['all_cls_scores'])


def test_local_and_global_memory_are_inverse():
    rng = np.random.default_rng(0)
    local = dict(
        embedding=rng.normal(size=(1, 4, 2)),
        reference_point=rng.normal(size=(1, 4, 3)) * 30,
        timestamp=rng.uniform(0, 2, (1, 4, 1)),
        egopose=np.tile(np.eye(4), (1, 4, 1, 1)),
        velo=rng.normal(size=(1, 4, 2)),
    )
    pose = toy.frame(3).ego_pose
    back = to_local(to_global(local, pose, 1.5e9), pose, 1.5e9)
    for field, values in local.items():
        np.testing.assert_allclose(back[field], values, rtol=0, atol=2e-4, err_msg=field)


def test_relative_motion_is_exact_far_away():
    last, now = (toy.frame(i).ego_pose for i in (3, 4))
    wanted = relative_motion(last, now)
    np.testing.assert_allclose(wanted, np.linalg.inv(now) @ last, rtol=0, atol=1e-4)
    for pose in (last, now):
        pose[:2, 3] += 700000.0
    np.testing.assert_allclose(relative_motion(last, now), wanted, rtol=0, atol=1e-9)


# ---- cost


def test_only_motion_and_time_are_fed_while_the_rig_is_the_same(runtime):
    fed = []
    for index in range(3):
        runtime.step(toy.frame(index))
        fed.append(runtime.fed_bytes)
    matrices = 2 * NUM_CAMS * 16 * 4
    assert fed == [matrices + 72, 72, 72]


def test_the_position_embedding_is_computed_once_per_rig(runtime):
    spent = []
    for index in range(4):
        frame = toy.frame(index)
        assert np.array_equal(frame.lidar2img, toy.frame(0).lidar2img)
        runtime.step(frame)
        spent.append(runtime.graph_seconds()['embedding'])
    runtime.reset()
    runtime.step(toy.frame(0, 'another drive'))
    assert spent[0] > 0 and {*spent, runtime.graph_seconds()['embedding']} == {spent[0]}


def test_the_position_embedding_follows_the_calibration(folder, runtime):
    frames = [toy.frame(i) for i in range(2)]
    turned = frames[1].intrinsics.copy()
    turned[:, 0, 0] *= 1.25
    lidar2img = turned @ np.linalg.solve(frames[1].intrinsics, frames[1].lidar2img)
    frames[1] = dataclasses.replace(frames[1], intrinsics=turned, lidar2img=lidar2img)
    for frame in frames:
        found = runtime.step(frame).outputs
    assert runtime.fed_bytes > 72
    assert_close(found, toy.eager(frames)[1])


# ---- resets


def frames_with(**second):
    first, after = toy.frame(0), toy.frame(1)
    return first, dataclasses.replace(after, **second)


@pytest.mark.parametrize(
    ('second', 'word'),
    [
        (dict(scene_token='other'), 'scene changed'),
        (dict(timestamp_s=toy.frame(0).timestamp_s + 2.6), '2.600 s'),
    ],
)
def test_a_new_scene_or_a_gap_empties_the_memory_and_says_so(runtime, caplog, second, word):
    first, after = frames_with(**second)
    with caplog.at_level(logging.INFO):
        runtime.step(first)
        result = runtime.step(after)
    assert result.was_reset and runtime.was_reset and word in caplog.text
    runtime.reset()
    alone = runtime.step(after)
    np.testing.assert_array_equal(alone.outputs['all_bbox_preds'], result.outputs['all_bbox_preds'])


def test_a_gap_is_no_reset_without_max_gap(folder):
    first, after = frames_with(timestamp_s=toy.frame(0).timestamp_s + 60)
    with StreamPetrOnnx(folder, threads=1, max_gap_s=None) as opened:
        opened.step(first)
        assert not opened.step(after).was_reset


def test_time_may_begin_anew_with_a_scene_or_after_a_reset(runtime):
    runtime.step(toy.frame(4))
    assert runtime.step(toy.frame(0, 'other')).was_reset
    runtime.reset()
    assert runtime.step(toy.frame(0, 'other')).was_reset


# ---- what it refuses


def broken_pose(kind):
    pose = toy.frame(1).ego_pose
    if kind == 'nan':
        pose[0, 3] = np.nan
    elif kind == 'scaled':
        pose[:3, :3] *= 1.1
    elif kind == 'mirrored':
        pose[:, 0] *= -1
    return pose[:3] if kind == 'small' else pose


def broken_matrices(kind):
    matrices = toy.frame(1).lidar2img
    if kind == 'singular':
        matrices[3, 1] = matrices[3, 0]
    elif kind == 'nan':
        matrices[2, 0, 0] = np.nan
    elif kind == 'sheared':
        matrices[1, :3, :3] = matrices[1, :3, :3] @ np.diag([1.0, 1.3, 1.0])
    return matrices[:5] if kind == 'five' else matrices


BAD = [
    (dict(ego_pose=broken_pose('nan')), DataError, 'ego_pose: got NaN'),
    (dict(ego_pose=broken_pose('scaled')), DataError, 'ego_pose: is not a rigid transform'),
    (dict(ego_pose=broken_pose('mirrored')), DataError, 'mirrors'),
    (dict(ego_pose=broken_pose('small')), DataError, r'ego_pose: got shape \(3, 4\), expected \(4, 4\)'),
    (dict(ego_pose=None), DataError, 'ego_pose: is missing'),
    (dict(lidar2img=broken_matrices('singular')), DataError, 'lidar2img of camera 3 is singular'),
    (dict(lidar2img=broken_matrices('nan')), DataError, 'lidar2img of camera 2 has NaN'),
    (
        dict(lidar2img=broken_matrices('sheared')),
        DataError,
        'lidar2img of camera 1 is not its intrinsics times',
    ),
    (dict(lidar2img=broken_matrices('five')), DataError, r'expected \(6, 4, 4\) for the 6 cameras'),
    (dict(lidar2img=None), DataError, 'calibration: is missing'),
    (dict(images=np.zeros((5, 3, HEIGHT, WIDTH), np.float32)), ShapeError, 'the 6 cameras of this model'),
    (dict(images=np.zeros((6, 3, HEIGHT, WIDTH + 32), np.float32)), ShapeError, 'expected float32'),
    (dict(timestamp_s=toy.frame(0).timestamp_s - 0.5), DataError, '0.500000 s before the last frame'),
    (dict(timestamp_s=float('nan')), DataError, 'timestamp_s: got nan'),
]


@pytest.mark.parametrize(
    ('second', 'error', 'message'), BAD, ids=[f'{next(iter(b[0]))}-{i}' for i, b in enumerate(BAD)]
)
def test_a_bad_frame_is_refused_and_leaves_the_memory_alone(runtime, second, error, message):
    first, bad = frames_with(**second)
    runtime.step(first)
    before = runtime.state
    with pytest.raises(error, match=message):
        runtime.step(bad)
    after = runtime.state
    assert after.timestamp_s == before.timestamp_s
    for field, values in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[field], values)
    assert not runtime.step(toy.frame(1)).was_reset


def test_a_network_that_gives_nan_is_an_error_and_an_empty_memory(runtime):
    first, bad = frames_with(images=np.full((6, 3, HEIGHT, WIDTH), np.nan, np.float32))
    runtime.step(first)
    with pytest.raises(InferenceError, match='gave NaN or infinity; the memory was emptied'):
        runtime.step(bad)
    again = runtime.step(toy.frame(1))
    assert again.was_reset and np.isfinite(again.outputs['all_cls_scores']).all()


@pytest.mark.parametrize('kind', ['shape', 'missing', 'nan'])
def test_a_state_of_another_model_is_refused(runtime, kind):
    runtime.step(toy.frame(0))
    state = runtime.state
    tensors = {name: values.copy() for name, values in state.tensors.items()}
    if kind == 'shape':
        tensors['embedding'] = tensors['embedding'][..., :16]
    elif kind == 'missing':
        del tensors['velo']
    else:
        tensors['egopose'][0, 3] = np.nan
    message = dict(shape='another model', missing="no tensor 'velo'", nan='has NaN')[kind]
    with pytest.raises(ShapeError, match=message):
        runtime.state = dataclasses.replace(state, tensors=tensors)


def test_files_of_two_exports_are_refused(folder, tmp_path):
    paths = toy.write(tmp_path, checkpoint='e' * 64)
    with pytest.raises(ModelFileError, match='checkpoint_sha256'):
        StreamPetrOnnx([paths[0], paths[1], folder / 'pts_head_memory.onnx'])


def test_two_files_of_one_graph_are_refused(folder):
    paths = [
        folder / f'{name}.onnx' for name in ('extract_img_feat', 'position_embedding', 'pts_head_memory')
    ]
    with pytest.raises(ModelFileError, match='both have the graph pts_head_memory'):
        StreamPetrOnnx([*paths, paths[-1]])


@pytest.mark.parametrize('contract', ['deploy', 'fork'])
def test_a_state_is_a_copy(folder, fork, contract):
    opens, path = (StreamPetrOnnx, folder) if contract == 'deploy' else (ForkOnnx, fork)
    with opens(path, threads=1) as opened:
        opened.step(toy.frame(0))
        state, again = opened.state, opened.state
        for values in (*state.tensors.values(), state.ego_pose):
            values += 1
        for name, values in opened.state.tensors.items():
            np.testing.assert_array_equal(values, again.tensors[name])
        np.testing.assert_array_equal(opened.state.ego_pose, again.ego_pose)


def test_an_incomplete_folder_is_refused_by_name(folder, tmp_path):
    (tmp_path / 'extract_img_feat.onnx').write_bytes((folder / 'extract_img_feat.onnx').read_bytes())
    with pytest.raises(ModelFileError, match=r'position_embedding\.onnx.*pts_head_memory\.onnx'):
        StreamPetrOnnx(tmp_path)
    with pytest.raises(ModelFileError, match='extract_img_feat'):
        StreamPetrOnnx(tmp_path / 'extract_img_feat.onnx')


def test_a_file_of_another_family_is_refused():
    with pytest.raises(ModelFileError, match=r"'dense'.*'streampetr'"):
        ForkOnnx(REPOSITORY / 'demo/atss_toy.onnx')


def test_a_rule_of_other_pictures_than_the_graph_takes_is_refused_when_it_is_opened(fork, tmp_path):
    model = onnx.load(fork)
    entry = next(entry for entry in model.metadata_props if entry.key == 'mm2onnx.preprocess')
    rule = json.loads(entry.value)
    entry.value = json.dumps(rule | dict(size=[1, rule['size'][1]], pad_size=None, size_divisor=1))
    onnx.save(model, tmp_path / 'other.onnx')
    with pytest.raises(ModelFileError, match=r'other\.onnx'):
        ForkOnnx(tmp_path / 'other.onnx')


def test_the_fork_contract_is_refused_in_openvino(fork):
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    with pytest.raises(EngineError, match='OpenVINO'):
        ForkOnnx(fork, engine='OpenVinoBackend')


# ---- decoding


@pytest.mark.parametrize('threshold', [None, 0.0, 0.3])
def test_decoding_equals_the_models_coder(threshold):
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.models.streampetr.coder import NMSFreeCoder

    rng = np.random.default_rng(1)
    facts = QueryBoxFacts(
        post_center_range=(-20, -20, -3, 20, 20, 3), max_num=30, score_threshold=threshold, num_classes=10
    )
    scores = rng.normal(size=(2, 1, 24, 10)).astype(np.float32)
    preds = (rng.normal(size=(2, 1, 24, 10)) * [12, 12, 2, 1, 1, 1, 1, 1, 5, 5]).astype(np.float32)
    settings = ('post_center_range', 'max_num', 'score_threshold', 'num_classes')
    coder = NMSFreeCoder(pc_range=None, **{name: getattr(facts, name) for name in settings})
    wanted = coder.decode(
        dict(all_cls_scores=torch.from_numpy(scores), all_bbox_preds=torch.from_numpy(preds))
    )
    wanted = {name: values.numpy() for name, values in wanted[0].items()}
    found = decode(scores, preds, facts)
    assert 0 < len(found) < 30
    np.testing.assert_array_equal(found.labels, wanted['labels'])
    np.testing.assert_allclose(found.scores, wanted['scores'], rtol=0, atol=1e-6)
    wanted['bboxes'][:, 2] -= wanted['bboxes'][:, 5] / 2
    np.testing.assert_allclose(found.boxes, wanted['bboxes'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('case', ['narrow', 'narrow_thr', 'thr0'])
def test_decoding_equals_the_published_coder(case):
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/streampetr not found')
    extra, outputs = np.load(GOLDEN / 'decode_extra.npz'), np.load(GOLDEN / 'outputs.npz')
    settings = json.loads(str(extra[f'{case}_args']))
    facts = QueryBoxFacts(**dict(dict(score_threshold=None, num_classes=10), **settings))
    found = decode(outputs['f1_all_cls_scores'], outputs['f1_all_bbox_preds'], facts)
    wanted = extra[f'{case}_bboxes'].copy()
    wanted[:, 2] -= wanted[:, 5] / 2
    np.testing.assert_allclose(found.scores, extra[f'{case}_scores'], rtol=0, atol=1e-6)
    # near-ties down to 3e-8 may swap, so both are compared in the order of x
    for one, two in ((found.boxes, wanted), (found.labels, extra[f'{case}_labels'])):
        one, two = one[np.argsort(found.boxes[:, 0])], two[np.argsort(wanted[:, 0])]
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


# ---- without PyTorch

SCRIPT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmdet3d', 'onnx', 'PIL'):
            raise ModuleNotFoundError('blocked: ' + name, name=name)
sys.meta_path.insert(0, Blocker())
import numpy as np
from mmdeploy_ext.families.streampetr.runtime import StreamPetrOnnx
runtime = StreamPetrOnnx(sys.argv[1], threads=1)
given = np.load(sys.argv[2])
rig = runtime.rule.calibrate(given['intrinsics'], given['lidar2cam'])
for index in range(2):
    boxes = runtime.detect(list(given['images']), rig, np.eye(4), 10.0 + index)
print(len(boxes), runtime.fed_bytes)
"""


def test_runs_without_pytorch(folder, tmp_path):
    rng = np.random.default_rng(0)
    intrinsics = np.tile(np.array([[100.0, 0, 80], [0, 100, 70], [0, 0, 1]]), (NUM_CAMS, 1, 1))
    np.savez(
        tmp_path / 'rig.npz',
        images=rng.integers(0, 256, (NUM_CAMS, *toy.RULE.source, 3), np.uint8),
        intrinsics=intrinsics,
        lidar2cam=np.tile(np.eye(4), (NUM_CAMS, 1, 1)),
    )
    command = [sys.executable, '-c', SCRIPT, str(folder), str(tmp_path / 'rig.npz')]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['20', '72']
