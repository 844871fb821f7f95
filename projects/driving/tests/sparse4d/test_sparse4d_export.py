"""Sparse4D's contracts: proven as a stream with track ids; faults in graph, bank and coder are not."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

import toy_drive_goldens
from eager_files import eager_row
from mm2onnx_driving.sparse4d import runtime as bank
from mm2onnx_driving.sparse4d.family import Sparse4DFamily
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.synthetic.drive import SyntheticDrive, synthetic_drive
from mmdeploy_ext.proving.not_shown import untraced_methods
from proofs import drive_row, prove
from toy_frames import SPARSE4D
from toy_frames import SPARSE4D_SHORT as toy

FRAMES = 3
ENGINE = dict(engine='OnnxRuntimeBackend')


detector, paths = toy.fixtures()


def drive(detector, frames=FRAMES, **settings):
    """Two scenes with a pause of ten seconds between them, which nothing resets."""
    return synthetic_drive(frames, detector.rule, scenes=2, **settings)


def test_one_graph_is_proven_as_a_stream(detector, paths):
    verdict = prove(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 200


def test_a_method_of_the_users_that_the_graph_computes_is_named(detector, monkeypatch):
    part = detector.model.head.instance_bank
    own = type('Own', (type(part),), dict(update=lambda self: None))
    assert untraced_methods(detector.family, detector.model, detector.cfg) == []
    monkeypatch.setattr(part, '__class__', own)
    (found,) = untraced_methods(detector.family, detector.model, detector.cfg)
    assert found.subject.startswith('Own.update (')


OTHERS = [dict(contract='deploy'), dict(grid_sample='operator', exporter='dynamo')]


@pytest.mark.matrix
@pytest.mark.parametrize('options', OTHERS, ids=str)
def test_other_files_are_proven(detector, tmp_path, options):
    verdict = prove(detector, toy.export(detector, tmp_path, **options), drive(detector))
    assert verdict.passed, verdict.failures


HEAD_INPUTS = 'feature', 'spatial_shapes', 'level_start_index', 'instance_feature', 'anchor', 'time_interval'
MEMORY_INPUTS = 'temp_instance_feature', 'temp_anchor', 'mask', 'track_id'
"""Inputs of SparseEnd2End's heads in their order; those of the rig follow."""


def test_the_loop_of_sparseend2end_gives_the_results_of_pytorch(detector, tmp_path):
    row, specs = eager_row(detector, tmp_path, drive(detector), contract='deploy')
    assert row.passed and row.matched >= 60, row.reasons
    _, first, later = specs.values()
    assert first.input_names == [*HEAD_INPUTS, 'image_wh', 'lidar2img']
    assert later.input_names == [*HEAD_INPUTS, *MEMORY_INPUTS, 'image_wh', 'lidar2img']
    assert later.output_names[-1] == 'pred_track_id'


def test_the_toy_gives_the_recorded_numbers(tmp_path):
    toy_drive_goldens.check(SPARSE4D.load(tmp_path))


def test_the_first_frame_takes_any_finite_instances(detector, paths):
    runner = detector.family.runner(paths, ENGINE)
    frame = next(iter(drive(detector, 1)))
    empty = runner.step(frame).outputs
    numbers = np.random.default_rng(0)

    def noisy(*arguments):
        inputs = inputs_of(*arguments)
        noise = {name: getattr(inputs, name).shape for name in ('feature', 'anchor')}
        noise = {name: numbers.standard_normal(shape).astype(np.float32) for name, shape in noise.items()}
        return inputs._replace(**noise)

    runner.reset()
    with mock.patch.object(bank, 'temporal_inputs', noisy):
        other = runner.step(frame).outputs
    for name, values in empty.items():
        np.testing.assert_array_equal(values, other[name])


def test_no_scene_empties_the_memory_as_published(detector, paths):
    runner = detector.family.runner(paths, ENGINE)
    frames = [
        dataclasses.replace(frame, scene_token=token, timestamp_s=0.5 * index)
        for index, (frame, token) in enumerate(zip(drive(detector, 3), ('a', 'b', None), strict=True))
    ]
    assert [runner.step(frame).was_reset for frame in frames] == [True, False, False]
    state = runner.state
    assert state.scene_token == 'b' and state.tensors['prev_id'][0] > 0


def test_results_of_the_test_loop_have_the_track_ids(detector, paths):
    (frame,) = drive(detector, 1)
    found = detector.family.runner(paths, ENGINE).step(frame).detections
    rows = detector.family.result(found)
    assert rows['instance_ids'].tolist() == found.ids.tolist() and len(found.ids) > 0


def changed(function, change):
    """Return a function whose arguments are changed before it is called."""
    return lambda *arguments, **named: function(*change(*arguments), **named)


def unturned(motion):
    moved = np.array(motion)
    moved[:3, :3] = np.eye(3)
    return moved


def ids_anew(*arguments):
    return {**next_bank(*arguments), 'prev_id': np.array([0], np.int64)}


project, inputs_of = bank.project_anchors, bank.temporal_inputs
tracked, next_bank = bank.tracked, bank.next_bank
FAULTS = {
    'projection without rotation': (
        (bank, 'project_anchors'),
        changed(project, lambda anchor, motion, seconds: (anchor, unturned(motion), seconds)),
    ),
    'ids begin anew in every frame': ((bank, 'next_bank'), ids_anew),
}
"""What is wrong -> (owner and name of a function), and what is put in its place."""


def frames_of_faults(detector):
    """Four frames: a second one 0.5 s later, a third one earlier than it, a fourth behind a gap."""
    frames = list(SyntheticDrive(4, detector.rule.input_size, scenes=1, jump_s=0.0))
    times = 0.0, 1.9, 1.2, 5.4
    pairs = zip(frames, times, strict=True)
    return [dataclasses.replace(frame, timestamp_s=1.5e9 + time) for frame, time in pairs]


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(detector, paths, fault):
    (owner, name), wrong = FAULTS[fault]
    with mock.patch.object(owner, name, wrong):
        assert not drive_row(detector, paths, frames_of_faults(detector)).passed


def test_frames_that_run_backwards_and_gaps_are_the_published_models(detector, paths):
    row = drive_row(detector, paths, frames_of_faults(detector))
    assert row.passed, row.reasons


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('use_deformable_func', False),
        ('head.decouple_attn', False),
        ('head.instance_bank.num_temp_instances', 60),
        ('head.num_single_frame_decoder', 3),
    ],
)
def test_a_model_that_the_graphs_do_not_follow_is_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        Sparse4DFamily().check_model(load_config(toy.config, {f'model.{setting}': value}))
