"""The ladder on real files of a toy StreamPETR: proven, refuted for another model, exact on long drives."""

import copy
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from mmcv import Config
from onnx import helper, numpy_helper
from rich.console import Console

import real_nuscenes
import toy_streampetr
import toy_streampetr_deploy as toy
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.evaluate.loop import DatasetFrames
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.families.streampetr import runtime as stream
from mmdeploy_ext.preprocess.cameras import multiview_rule
from mmdeploy_ext.proving.drive import SPECIAL, NearOrigin
from mmdeploy_ext.proving.frames import output_spec
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.levels.drive_run import DriveBars, default_bars
from mmdeploy_ext.proving.views.table import last_line, print_verdict
from mmdeploy_ext.runtime.geometry import relative_motion
from projects.configs.nuscenes_stream import image_augmentation, stream_data
from proofs import check_files, prove_samples, run_far
from verdicts import cases_of, checks_of, sequence_of

BARS = DriveBars(frames=18)


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    return toy.export(tmp_path_factory.mktemp('export'))


@pytest.fixture(scope='module')
def proven(paths):
    return prove(toy.deployment(), paths, toy.drive(18), bars=BARS)


def said(verdict):
    return '; '.join(verdict.failures)


def test_the_files_of_an_export_are_proven(proven):
    verdict, _ = proven
    assert verdict.proven, said(verdict)
    teacher, free = sequence_of(verdict)
    for row in (teacher, free):
        assert (row.frames, row.resets, row.time_jumps) == (18, 2, 1)
        assert row.match_rate == 1 and row.matched > 100
    case, special = cases_of(verdict)
    assert special.name == SPECIAL
    assert case.tensors and case.detections[0].matched == teacher.matched
    assert not case.traced and case.input_shape == '6x3x32x96'
    assert {check.name.split(':')[0] for check in checks_of(verdict)} == {
        'extract_img_feat',
        'position_embedding',
        'pts_head_memory',
    }
    assert set(verdict.timing_ms) == {'PyTorch (frame)', 'ONNX Runtime (frame)'}


def test_the_verdict_is_plain_json_and_a_table(proven):
    verdict, _ = proven
    content = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert content['verdict'] == 'proven' and content['summary']['sequence_frames'] == 18
    assert [*content['series']] == ['teacher-forced', 'free-running']
    assert len(content['series']['free-running']['errors']['memory velo']) == 18
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=120))
    lines = stream.getvalue().splitlines()
    assert lines[2].startswith('outputs        18 frames teacher-forced and free-running, tensors within ')
    assert 'equals the PyTorch model on 18 frames (' in lines[-2]
    assert lines[-1].startswith('next: python tools/demo/streampetr_video.py toy.py toy.pth --onnx ')


def test_a_few_frames_of_the_free_run_are_kept_as_the_network_saw_them(proven):
    _, pairs = proven
    assert len(pairs) == 4 and len({pair.title for pair in pairs}) == 4
    frames = list(toy.drive(18))
    for pair in pairs:
        index = int(pair.title.split()[-4]) - 1
        assert pair.background.shape == (6, 32, 96, 3) and pair.background.dtype == np.uint8
        assert np.array_equal(toy.drive(18).normalised(pair.background), frames[index].images)
        assert len(pair.reference) == len(pair.candidate) == 20


def test_another_model_is_refuted(paths):
    deployment = dataclasses.replace(toy.deployment(), model=copy.deepcopy(toy.deployment().model))
    weight = deployment.model.pts_bbox_head.cls_branches[0][6].weight
    weight.data.mul_(1.05)
    verdict, _ = prove_samples(deployment, paths, toy.drive(4))
    assert not verdict.proven
    assert 'graph: pts_head_memory: ' in said(verdict) and 'cls_branches' in said(verdict)
    assert 'teacher-forced: all_cls_scores: 4 of 4 frames fail, first scene 0 frame 0' in said(verdict)
    assert any('no scene' in note or 'claim about drift' in note for note in verdict.notes)


def rename(graph, names, inputs=True, outputs=True):
    """Rename what nodes read and write."""
    for node in graph.node:
        for values in [node.input] * inputs + [node.output] * outputs:
            values[:] = [names.get(value, value) for value in values]


def one_weight(graph):
    weight = next(value for value in graph.initializer if value.name.endswith('cls_branches.0.6.bias'))
    array = numpy_helper.to_array(weight).copy()
    array[0] += 0.05
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def swapped_outputs(graph):
    pair = 'all_cls_scores', 'all_bbox_preds'
    rename(graph, dict(zip(pair, reversed(pair), strict=True)))


def cut_off(name, constant):
    """Nodes read a constant in the place of an input."""

    def fault(graph):
        rename(graph, {name: 'instead'}, outputs=False)
        graph.initializer.append(numpy_helper.from_array(np.float32(constant), 'instead'))

    return fault


def frozen(name, constant):
    """The input still reaches the outputs, but is multiplied by zero on its way."""

    def fault(graph):
        rename(graph, {name: 'instead'}, outputs=False)
        nodes = [
            helper.make_node('Mul', [name, 'none_of_it'], ['nothing']),
            helper.make_node('Add', ['nothing', 'constant'], ['instead']),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
        for value, key in ((0.0, 'none_of_it'), (constant, 'constant')):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), key))

    return fault


SCENE_START = 'first scene 0 frame 0'
FAULTS = {
    'one weight': (
        one_weight,
        [
            'graph: pts_head_memory: 1 node differs from a fresh export',
            'teacher-forced: all_cls_scores: 6 of 6 frames fail',
        ],
    ),
    'outputs swapped': (swapped_outputs, [f'all_cls_scores: 6 of 6 frames fail, {SCENE_START}']),
    'motion cut off': (
        cut_off('ego_motion', np.eye(4)[None]),
        [
            'structure: pts_head_memory: every input reaches an output',
            'teacher-forced: memory reference_point',
        ],
    ),
    'motion frozen': (
        frozen('ego_motion', np.eye(4)[None]),
        ['teacher-forced: memory reference_point: 3 of 6 frames fail, first scene 0 frame 1'],
    ),
    'time frozen': (
        frozen('delta_t_s', [0.5]),
        ['teacher-forced: memory timestamp: 1 of 6 frames fail, first scene 0 frame 1'],
    ),
    'memory never emptied': (
        frozen('prev_exists', [1.0]),
        [f'teacher-forced: all_bbox_preds [xyz]: 3 of 6 frames fail, {SCENE_START}'],
    ),
}
IN_SUITE = 'time frozen', 'memory never emptied'
"""Of time and of the reset; the same comparison refuses the others."""


@pytest.mark.suite('memory never emptied')
@pytest.mark.parametrize(
    ('fault', 'words'),
    [
        pytest.param(*case, id=name, marks=[] if name in IN_SUITE else [pytest.mark.matrix])
        for name, case in FAULTS.items()
    ],
)
def test_a_planted_fault_is_refuted_and_named(fault, words, paths, tmp_path):
    spoiled = [shutil.copy(path, tmp_path) for path in paths]
    model = onnx.load(spoiled[-1])
    assert Path(spoiled[-1]).name == 'pts_head_memory.onnx'
    fault(model.graph)
    onnx.save(model, spoiled[-1])
    verdict, _ = prove_samples(toy.deployment(), spoiled, toy.drive(6))
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=200))
    (last,) = [line for line in stream.getvalue().splitlines() if line.startswith('NOT PROVEN: ')]
    reasons = verdict.failures
    assert last.startswith(f'NOT PROVEN: {reasons[0][:100]}')
    for word in words:
        assert any(word in reason for reason in reasons), reasons


def test_a_file_that_onnx_runtime_does_not_load_is_not_proven(paths, tmp_path):
    spoiled = [shutil.copy(path, tmp_path) for path in paths]
    model = onnx.load(spoiled[-1])
    next(node for node in model.graph.node if node.op_type == 'Concat').attribute[0].i = 99
    onnx.save(model, spoiled[-1])
    verdict, pictures = prove(toy.deployment(), spoiled, toy.drive(4))
    assert not verdict.passed and not pictures and not sequence_of(verdict)
    assert any('pts_head_memory.onnx: ONNX Runtime cannot load it: ' in one for one in verdict.failures)


def test_files_cannot_loosen_the_tolerances_that_they_are_judged_by(paths, tmp_path):
    spoiled = [shutil.copy(path, tmp_path) for path in paths]
    model = onnx.load(spoiled[-1])
    entry = next(one for one in model.metadata_props if one.key == 'mm2onnx.spec')
    spec = json.loads(entry.value)
    next(one for one in spec['outputs'] if one['name'] == 'all_cls_scores')['groups'] = [
        dict(name='', columns=None, unit='', rtol=0.5, atol=0.0)
    ]
    entry.value = json.dumps(spec)
    onnx.save(model, spoiled[-1])
    verdict = check_files(toy.deployment(), spoiled, toy.drive(4))
    assert not verdict.proven
    (failed,) = [one for one in checks_of(verdict) if not one.passed]
    assert failed.name == 'pts_head_memory: contract as the family states it'
    assert 'all_cls_scores: groups: the file says' in failed.detail


def test_nothing_found_by_either_is_not_proven_and_says_why(paths):
    deployment = copy.copy(toy.deployment())
    bars = DriveBars(frames=4, resets=0, score_thr=1.0)
    verdict, _ = prove(deployment, paths, toy.drive(4), bars=bars)
    assert all(row.match_rate is None for row in sequence_of(verdict))
    assert last_line(verdict).startswith('NOT PROVEN: teacher-forced: no detection was matched: use a drive')


def test_files_of_another_family_are_refused(paths):
    deployment = copy.copy(toy.deployment())
    deployment.family = copy.copy(deployment.family)
    deployment.family.name = 'other'
    with pytest.raises(ModelFileError, match="'streampetr'"):
        prove(deployment, paths, [])


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('made', 'frames', 'resets'),
    [pytest.param('scene_0103', 4, 0, marks=pytest.mark.matrix), ('mini_val', 6, 1)],
)
def test_real_key_frames_are_proven(made, frames, resets, tmp_path):
    """Pictures (of the second: poses and calibrations alone) through the data set's own pipeline."""
    from mmdet3d.datasets import build_dataset

    infos = (
        real_nuscenes.scene_0103(tmp_path) if made == 'scene_0103' else real_nuscenes.mini_val(tmp_path, 3)
    )
    image = image_augmentation((32, 96), (0.06, 0.07))
    test = stream_data(image, root=f'{tmp_path}/', infos='infos')['test']
    assert test['ann_file'] == str(infos)
    test['classes'] = list(toy.deployment().classes)
    cfg = Config(dict(model=toy_streampetr.model_cfg(), data=dict(test=test)))
    deployment = dataclasses.replace(toy.deployment(), cfg=cfg, rule=multiview_rule(test['pipeline']))
    written = export_files(deployment, deployment.family.choose(), str(tmp_path / 'deploy'))[0]
    drive = list(DatasetFrames(deployment.family, build_dataset(test), range(frames)))
    assert len({frame.lidar2img.tobytes() for frame in drive}) == frames, 'each frame is calibrated anew'
    verdict, _ = prove(deployment, written, drive, bars=DriveBars(frames=frames, resets=resets))
    assert verdict.proven, said(verdict)
    assert any(note.startswith('scenes up to 1.') for note in verdict.notes), verdict.notes
    worst = {tensor.tensor: tensor.max_abs for tensor in cases_of(verdict)[0].tensors}
    assert worst['all_bbox_preds [xyz]'] < 5e-4 and worst['all_cls_scores'] < 5e-5, 'as exact as at home'


def test_scenes_are_moved_to_the_origin_and_nothing_else_changes():
    drive = list(toy.drive(6, origin_m=(1800.0, -400.0)))
    poses = [dataclasses.replace(frame, ego_pose=frame.ego_pose.copy()) for frame in drive]
    moved = NearOrigin(drive)
    near = list(moved)
    assert 1700 < moved.moved_m < 2000
    for scene in range(3):
        first = near[2 * scene]
        assert np.abs(first.ego_pose[:3, 3]).max() <= 0.5
        for far, frame in zip(drive[2 * scene :], near[2 * scene : 2 * scene + 2], strict=False):
            assert dataclasses.replace(frame, ego_pose=far.ego_pose, ego_pose_inv=far.ego_pose_inv) == far
            np.testing.assert_allclose(frame.ego_pose @ frame.ego_pose_inv, np.eye(4), atol=1e-6)
        one, two = (relative_motion(*(f.ego_pose for f in pair[2 * scene :][:2])) for pair in (drive, near))
        np.testing.assert_array_equal(one, two)
    assert all((one.ego_pose == two.ego_pose).all() for one, two in zip(drive, poses, strict=True))
    home = list(toy.drive(3))
    assert all(one is two for one, two in zip(home, NearOrigin(home), strict=True))


def metadata(paths):
    from mmdeploy_ext.contract.metadata import read_metadata

    return [read_metadata(path) for path in paths]


def memory_of(family, known):
    return family.memory_spec(known[-1].postprocess)


def test_a_long_drive_far_from_the_origin_is_as_exact_as_the_first_frame(paths):
    """7e5 m out, time stamps above 1.6e9 s, twenty minutes in: equal up to the rounding of float64 poses."""
    family, known = toy.deployment().family, metadata(paths)
    steppers = [family.runner(paths, {}) for _ in range(2)]
    frames = toy.drive(18, exact_poses=True, start_s=0.0)
    row = run_far(*steppers, frames, output_spec(known), memory=memory_of(family, known), bars=BARS)
    assert row.passed and row.ties == 0, row.reasons
    errors = {tensor.tensor: tensor.max_abs for tensor in row.tensors}
    assert errors['all_cls_scores'] < 5e-5 and errors['all_bbox_preds [xyz]'] < 5e-4
    assert errors['memory reference_point'] < 5e-4 and errors['memory timestamp'] < 1e-6


def test_the_ego_motion_in_float32_is_seen_though_the_drive_is_near_the_origin(paths, monkeypatch):
    def motion(last, pose):
        return (np.linalg.inv(np.float32(pose)) @ np.float32(last)).astype(np.float64)

    monkeypatch.setattr(stream, 'relative_motion', motion)
    verdict, _ = prove(toy.deployment(), paths, toy.drive(2), bars=DriveBars(frames=2, resets=0))
    assert SPECIAL in said(verdict) and 'memory' in said(verdict)


def test_a_global_float32_memory_is_not(paths):
    """The check itself: the published model keeps its memory so, and fails by centimetres and more."""
    family, known = toy.deployment().family, metadata(paths)
    steppers = [family.reference(copy.deepcopy(toy.deployment().model)) for _ in range(2)]
    frames = toy.drive(6, exact_poses=True, start_s=0.0)
    row = run_far(*steppers, frames, output_spec(known), memory=memory_of(family, known), bars=BARS)
    errors = {tensor.tensor: tensor.max_abs for tensor in row.tensors}
    assert not row.passed and errors['memory reference_point'] > 0.05


def test_float16_files_have_bars_of_their_own(paths):
    family, known = toy.deployment().family, metadata(paths)
    memory = memory_of(family, known)
    assert default_bars('fp32').cosine is None and default_bars('fp16').cosine == 0.999
    judged = memory.judged_by(output_spec(known))
    assert set(judged.tensors) == set(memory.tensors)
    outputs = {tensor.name: tensor for tensor in output_spec(known).outputs}
    assert judged.tensors['velo'] == outputs['post_memory_velo'].column_groups[0]
