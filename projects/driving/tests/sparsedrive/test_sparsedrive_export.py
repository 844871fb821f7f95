"""SparseDrive's files: proven as a stream of boxes, lines, trajectories and plans; wrong ones are not."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from mm2onnx_driving.sparsedrive import runtime
from mm2onnx_driving.sparsedrive.family import SparseDriveFamily
from mm2onnx_driving.sparsedrive.model import decoded
from mm2onnx_driving.sparsedrive.reference import SparseDriveReference, colliding
from mm2onnx_driving.sparsedrive.runtime import SparseDriveOnnx
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.synthetic.drive import SyntheticDrive, synthetic_drive
from mmdeploy_ext.proving.drive_run import SHORT_DRIVE
from mmdeploy_ext.proving.frames import output_spec
from mmdeploy_ext.runtime.driving import command_of
from mmdeploy_ext.runtime.tasks import driving
from mmdeploy_ext.spec.metadata import read_metadata
from planting import replaced
from proofs import prove, run_pair
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


@pytest.fixture(scope='module')
def row_of_live(detector, paths):
    """Return a function that runs the files beside PyTorch over one frame, and decodes made outputs too."""
    family, computed = detector.family, [read_metadata(path) for path in paths]
    memory = family.memory_spec(computed[-1].postprocess)
    settings = dict(memory=memory, length=dataclasses.replace(SHORT_DRIVE, frames=1), task=family.task)
    frames, runner = frames_of_faults(detector)[:1], family.runner(paths, dict(threads=1))
    reference = family.reference(detector.model)
    return lambda: run_pair(reference, runner, frames, output_spec(computed), 'teacher', **settings)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(row_of, fault):
    with mock.patch.object(SparseDriveOnnx, 'run', FAULTS[fault]):
        assert not row_of().passed


def other_plan(change):
    return lambda original: lambda *args: change(original(*args))


def without_rescore(original):
    return lambda facts, *args: original(dataclasses.replace(facts, use_rescore=False), *args)


PLANS = {
    'the chosen plan is shorter': other_plan(
        lambda found: dataclasses.replace(found, final=found.final * 0.9)
    ),
    'another plan is chosen': other_plan(
        lambda found: dataclasses.replace(found, final=found.points[(found.mode + 1) % len(found.points)])
    ),
    'plans that collide keep their score': without_rescore,
}


@pytest.mark.parametrize('fault', PLANS)
def test_a_wrong_plan_is_not_proven(row_of_live, fault):
    with replaced('mm2onnx_driving.sparsedrive.runtime:plan_of', PLANS[fault]):
        assert not row_of_live().passed


@pytest.mark.parametrize('wrong', [lambda plan: 0 * plan, lambda plan: 0.9 * plan])
def test_the_plan_that_the_users_planner_chooses_is_compared(row_of_live, wrong):
    """Zeros are the plan of a command that the files do not give."""

    def chosen(original):
        def decoded(*args):
            found = original(*args)
            return dict(found, final_planning=wrong(found['final_planning']))

        return decoded

    assert row_of_live().passed
    with replaced('mm2onnx_driving.sparsedrive.model:decoded', chosen):
        assert not row_of_live().passed


def random_outputs(seed, plans=6, steps=6, agents=12):
    rng = np.random.default_rng(seed)
    anchor = rng.normal(size=(1, agents, 11))
    anchor[..., :2] *= 6
    anchor[..., 3:6] = np.log(rng.uniform(0.5, 5, (1, agents, 3)))
    return dict(
        pred_anchor=anchor.astype(np.float32),
        pred_class_score=rng.normal(-1, 1, (1, agents, 4)).astype(np.float32),
        pred_quality_score=rng.normal(size=(1, agents, 2)).astype(np.float32),
        map_points=rng.normal(size=(9, 40)).astype(np.float32)[None],
        map_scores=rng.normal(size=(1, 9, 3)).astype(np.float32),
        motion_scores=rng.normal(size=(1, agents, 3)).astype(np.float32),
        motion_steps=rng.normal(size=(1, agents, 3 * 12 * 2)).astype(np.float32),
        plan_scores=rng.normal(size=(1, plans)).astype(np.float32),
        plan_steps=rng.normal(size=(1, plans, steps * 2)).astype(np.float32),
    )


@pytest.mark.parametrize(('plans', 'steps'), [(6, 6), (3, 2), (1, 5)])
def test_both_writings_of_the_decoder_are_equal_with_plans_that_collide(plans, steps):
    """One is the runtime's, in numpy, the other the model's, in torch."""
    facts = SimpleNamespace(
        max_num=30, score_threshold=None, motion_steps=12, plan_steps=steps, line_points=20, use_rescore=True
    )
    head = SimpleNamespace(
        det_head=SimpleNamespace(decoder=SimpleNamespace(num_output=30)),
        motion_plan_head=SimpleNamespace(fut_mode=3, planning_decoder=SimpleNamespace(use_rescore=True)),
    )
    reference, reached = SparseDriveReference.__new__(SparseDriveReference), 0
    reference.command = 1
    for seed in range(20):
        outputs = random_outputs(seed, plans, steps)
        scene = runtime.scene_of(facts, outputs)
        tensors = {name: torch.from_numpy(values) for name, values in outputs.items()}
        expected = reference.results([dict(img_bbox=decoded(head, tensors, 1))])
        row = driving.match_detections('a', expected, scene, **driving.ONE_TO_ONE)
        assert row.passed, row.reason
        reached += 0 < (expected.plan_scores < 1e-6).sum() < plans
    assert reached >= 3 if plans > 1 else reached == 0


@pytest.mark.parametrize('seed', range(4))
def test_outputs_with_a_colliding_best_plan_are_made(seed):
    changed = colliding(random_outputs(seed))
    facts = SimpleNamespace(plan_steps=6, use_rescore=True)
    found = runtime.plan_of(facts, changed, changed['motion_steps'][0].reshape(12, 3, 12, 2))
    assert found.mode != changed['plan_scores'].argmax() and (found.scores < 1e-6).sum() == 1
    assert colliding(random_outputs(seed, plans=1)) is None


def test_plans_that_collide_lose_their_score():
    """A car stands 6 m ahead: the first plan stops before it, the second hits it, the third passes it."""
    way = np.linspace(0, 1, 7)[1:, None]
    plans = np.stack([way * end for end in ([0.0, 1.0], [0.0, 12.0], [8.0, 12.0])])
    anchor = np.float32([[0, 6, 0, np.log(4), np.log(2), 0, 1, 0, 0, 0, 0]])
    standing = np.zeros((1, 6, 2))
    sure, unsure = np.float32([[1.0]]), np.float32([[-1.0]])
    assert runtime.collisions(plans, standing, anchor, sure).tolist() == [False, True, False]
    assert not runtime.collisions(plans, standing, anchor, unsure).any()


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
        SparseDriveFamily().check_model(load_config(toy.config, {f'model.{setting}': value}))
