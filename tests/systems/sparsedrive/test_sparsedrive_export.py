"""SparseDrive's files: proven as a stream of boxes, lines, trajectories and plans; wrong ones are not."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from mmdeploy_ext.config.config import load_config
from mmdeploy_ext.runtime.driving import command_of
from mmdeploy_ext.synthetic.drive import SyntheticDrive, synthetic_drive
from mmdeploy_ext.systems.sparsedrive import decoding
from mmdeploy_ext.systems.sparsedrive.family import SparseDriveFamily
from mmdeploy_ext.systems.sparsedrive.runtime import SparseDriveOnnx
from mmdeploy_ext.util.errors import ConfigError, DataError
from proofs import prove
from replay import rows, run_of, with_outputs, with_tensors
from toy_frames import SPARSEDRIVE_SHORT as toy

FRAMES = 4


detector, paths = toy.fixtures()


def drive(detector, frames=FRAMES):
    """Two scenes with a pause of ten seconds between them, which nothing resets."""
    return synthetic_drive(frames, detector.rule, scenes=2)


@pytest.mark.matrix
def test_three_files_are_proven_as_a_stream(detector, paths):
    verdict = prove(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 100


def exchanged(outputs, name, axes, permuted):
    values = outputs[name]
    outputs[name] = permuted(values.reshape(values.shape[0], *axes)).reshape(values.shape)


def other_best(outputs):
    rows = np.argsort(outputs['pred_quality_score'][0, :, 0])[: outputs['post_feature'].shape[1]]
    outputs['post_feature'] = outputs['post_feature'][:, np.argsort(rows)]


def at_first_place(frame, memory):
    return dataclasses.replace(frame, ego_pose=memory.ego_pose if memory else frame.ego_pose)


def half_a_second_later(frame, memory):
    return dataclasses.replace(frame, timestamp_s=memory.timestamp_s + 0.5 if memory else frame.timestamp_s)


def reversed_rows(values):
    return values[:, ::-1]


RUN = SparseDriveOnnx.run
LINE, MODES, PLAN = (-1, 20, 2), (-1, 6, 12, 2), (6, 6, 2)
OF_FRAMES = {
    'memory not reset': half_a_second_later,
    'memory in the wrong frame': at_first_place,
    'command left out': lambda frame, memory: dataclasses.replace(frame, command=np.eye(3)[0]),
}
OF_MEMORY = {
    'status of the frame before the last': dict(ego_status=np.zeros_like),
    'anchors exchanged': dict(anchor=reversed_rows),
    'lines exchanged': dict(map_anchor=reversed_rows),
    'queue forgotten': dict(queue_period=np.zeros_like),
    'queue in another order': dict(queue_feature=lambda rows: rows[:, :, ::-1]),
}
OF_OUTPUTS = {
    'a line reversed': ('map_points', LINE, lambda points: points[:, :, ::-1]),
    'a line shifted by a point': ('map_points', LINE, lambda points: np.roll(points, 1, 2)),
    'modes of agents permuted': ('motion_steps', MODES, lambda ways: ways[:, :, ::-1]),
    'modes of the plan permuted': ('plan_steps', PLAN, reversed_rows),
}
FAULTS = {
    **{name: run_of(RUN, lambda *both, f=change: (f(*both), both[1])) for name, change in OF_FRAMES.items()},
    **{
        name: run_of(RUN, lambda frame, memory, f=change: (frame, with_tensors(memory, **f)))
        for name, change in OF_MEMORY.items()
    },
    **{
        name: with_outputs(RUN, lambda outputs, f=change: exchanged(outputs, *f))
        for name, change in OF_OUTPUTS.items()
    },
    'kept instances by another score': with_outputs(RUN, other_best),
}
"""What is wrong -> what runs in the place of the files."""


def frames_of_faults(detector):
    """Four frames of one drive, the third earlier than the second, the last behind a gap."""
    frames = list(SyntheticDrive(4, detector.rule.input_size, scenes=1, jump_s=0.0))
    pairs = zip(frames, (0.0, 1.9, 1.2, 4.9), strict=True)
    return [dataclasses.replace(frame, timestamp_s=1.5e9 + time) for frame, time in pairs]


@pytest.fixture(scope='module')
def row_of(detector, paths):
    """Return a function that runs the files beside PyTorch over the frames of the faults."""
    return rows(detector, paths, frames_of_faults(detector))


def test_frames_that_run_backwards_and_gaps_are_the_published_models(row_of):
    row = row_of()
    assert row.passed, row.reasons


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(row_of, fault):
    with mock.patch.object(SparseDriveOnnx, 'run', FAULTS[fault]):
        assert not row_of().passed


def test_plans_that_collide_lose_their_score():
    """A car stands 6 m ahead: the first plan stops before it, the second hits it, the third passes it."""
    way = np.linspace(0, 1, 7)[1:, None]
    plans = np.stack([way * end for end in ([0.0, 1.0], [0.0, 12.0], [8.0, 12.0])])
    anchor = np.float32([[0, 6, 0, np.log(4), np.log(2), 0, 1, 0, 0, 0, 0]])
    standing = np.zeros((1, 6, 2))
    sure, unsure = np.float32([[1.0]]), np.float32([[-1.0]])
    assert decoding.collisions(plans, standing, anchor, sure).tolist() == [False, True, False]
    assert not decoding.collisions(plans, standing, anchor, unsure).any()


def test_a_frame_without_a_command_is_refused(detector):
    (frame,) = drive(detector, 1)
    with pytest.raises(DataError, match='command'):
        command_of(dataclasses.replace(frame, command=None))


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('use_deformable_func', False),
        ('head.det_head.decouple_attn', False),
        ('head.det_head.decoder.score_threshold', 0.1),
        ('head.task_config.with_motion_plan', False),
    ],
)
def test_a_model_that_the_graphs_do_not_follow_is_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        SparseDriveFamily.models.check(load_config(toy.config, {f'model.{setting}': value}))
