"""VAD's file: proven as a stream of boxes, lines, trajectories and plans; wrong ones are not."""

import dataclasses
import hashlib
import types
from unittest import mock

import numpy as np
import pytest
import torch

from marking import in_suite
from mm2onnx_driving.common.runtime import bev_frames
from mm2onnx_driving.vad import family
from mm2onnx_driving.vad.family import VadFamily
from mm2onnx_driving.vad.model import LineEncoder
from mm2onnx_driving.vad.runtime import VadOnnx
from mm2onnx_driving.vad.steps import bounds_of
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime.bev_motion import YAW_DEG, YAW_RAD, record_of_pose
from mmdeploy_ext.runtime.frames import StreamState
from proofs import OF_OTHER_CONTRACTS
from replay import rows, run_of, with_outputs, with_tensors
from toy_frames import VAD as toy

detector, paths = toy.fixtures()


def drive(detector, frames=3):
    return synthetic_drive(frames, detector.rule, scenes=2)


@pytest.mark.parametrize('prove', OF_OTHER_CONTRACTS)
def test_the_file_is_proven_as_a_stream(detector, paths, prove):
    verdict = prove(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 80


def recorded_frames(detector):
    """Four frames of two scenes with records of different motion."""
    frames = []
    for number, frame in enumerate(synthetic_drive(4, detector.rule, scenes=2)):
        record = record_of_pose(frame.ego_pose)
        record[7:16] = np.random.default_rng(number).uniform(-2, 2, 9)
        frames.append(dataclasses.replace(frame, can_bus=record))
    return frames


def with_record(frame, place, values):
    record = np.array(frame.can_bus)
    record[place] = values
    return dataclasses.replace(frame, can_bus=record)


def never_reset(frame, memory):
    if memory is None:
        place = dict(position=frame.can_bus[:3], heading=frame.can_bus[[YAW_DEG]])
        memory = StreamState(dict(place, bev_embed=np.ones((144, 1, 32), np.float32)), None, 0.0, '')
    return frame, memory


def at_last_place(frame, memory):
    here = dict(position=lambda _: frame.can_bus[:3], heading=lambda _: frame.can_bus[[YAW_DEG]])
    return frame, with_tensors(memory, **here)


RUN, TURN, SHIFT = VadOnnx.run, bev_frames.bev_rotation, bev_frames.bev_shift
OF_FRAMES = {
    'memory not reset': never_reset,
    'memory in the wrong frame': at_last_place,
    'memory of another row': lambda frame, memory: (
        frame,
        with_tensors(memory, bev_embed=lambda view: np.roll(view, 12, 0)),
    ),
    'status of the frame before': lambda frame, memory: (
        with_record(frame, slice(7, 16), np.roll(frame.can_bus[7:16], 3)),
        memory,
    ),
    'CAN bus in degrees': lambda frame, memory: (
        with_record(frame, YAW_RAD, frame.can_bus[YAW_DEG]),
        memory,
    ),
    'command left out': lambda frame, memory: (dataclasses.replace(frame, command=np.eye(3)[0]), memory),
    'cameras exchanged': lambda frame, memory: (
        dataclasses.replace(frame, lidar2img=frame.lidar2img[::-1]),
        memory,
    ),
}
OF_OUTPUTS = {
    'a line reversed': ('map_all_pts_preds', lambda points: points[..., ::-1, :]),
    'a line shifted by a point': ('map_all_pts_preds', lambda points: np.roll(points, 1, -2)),
    'x and y of lines exchanged': ('map_all_pts_preds', lambda points: points[..., ::-1]),
    'modes permuted': ('all_traj_preds', lambda steps: steps[..., ::-1, :]),
    'classes shifted': ('all_cls_scores', lambda logits: np.roll(logits, 1, -1)),
    'classes of lines shifted': ('map_all_cls_scores', lambda logits: np.roll(logits, 1, -1)),
    'steps of the plan not added': ('ego_plan', lambda plan: np.diff(plan, axis=1, prepend=0)),
}
OF_MOTION = {
    'x and y of the shift exchanged': ('bev_shift', lambda *given: SHIFT(*given)[::-1]),
    'turned to the other side': ('bev_rotation', lambda degrees, *given: TURN(-degrees, *given)),
}


def changed(name, change):
    return with_outputs(RUN, lambda found: found.update({name: change(found[name])}))


FAULTS = {
    **{name: (VadOnnx, 'run', run_of(RUN, change)) for name, change in OF_FRAMES.items()},
    **{name: (VadOnnx, 'run', changed(*change)) for name, change in OF_OUTPUTS.items()},
    **{name: (bev_frames, *change) for name, change in OF_MOTION.items()},
}
"""What is wrong -> owner and name of what is replaced, and what takes its place."""


@pytest.fixture(scope='module')
def row_of(detector, paths):
    """Return a function that runs the files beside PyTorch over the frames of the faults."""
    return rows(detector, paths, recorded_frames(detector))


def test_records_and_a_change_of_scene_are_the_published_models(row_of):
    row = row_of()
    assert row.passed, row.reasons


OFTEN = (
    'memory not reset',
    'memory in the wrong frame',
    'command left out',
    'a line reversed',
    'modes permuted',
)


@pytest.mark.parametrize('fault', in_suite(FAULTS, *OFTEN))
def test_a_fault_in_our_own_code_is_not_proven(row_of, fault):
    with mock.patch.object(*FAULTS[fault]):
        assert not row_of().passed


def test_a_line_at_a_threshold_is_undecided_for_objects_beside_it():
    head = types.SimpleNamespace(map_thresh=0.5, dis_thresh=0.2, pc_range=[0, 0, 0, 10, 10, 1])
    logits = [[0, -9], [9, -9], [-9, -9]]
    points = [[[x, 0.1], [0.9, 0.9]] for x in (0.1, 0.3, 0.1)]
    boxes = [[1, 1, *[0] * 8], [9, 9, *[0] * 8]]
    named = dict(map_all_cls_scores=logits, map_all_pts_preds=points, all_bbox_preds=boxes)
    outputs = {name: np.float32(values)[None, None] for name, values in named.items()}
    assert family.undecided(head, outputs) == 2


def test_the_encoder_of_lines_does_not_depend_on_the_order_of_points():
    torch.manual_seed(0)
    encoder, points = LineEncoder(8), torch.randn(1, 3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(points), encoder(points.flip(2)))
    bounds = bounds_of(torch.tensor([[[0.2, 0.9], [0.6, 0.5]]]))
    torch.testing.assert_close(bounds, torch.tensor([[0.4, 0.7, 0.4, 0.4]]))


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('ego_lcf_feat_idx', [0]),
        ('query_thresh', 0.2),
        ('map_query_embed_type', 'all_pts'),
        ('map_bbox_coder.post_center_range', [-10, -35, -20, -35, 20, 35, 20, 35]),
    ],
)
def test_a_model_that_the_graph_does_not_follow_is_refused(setting, value):
    with pytest.raises(ConfigError, match=setting.rpartition('.')[2]):
        VadFamily().check_model(load_config(toy.config, {f'model.pts_bbox_head.{setting}': value}))


UPSTREAM = 'c1ab248ec53c949e26bce00439e065cdc69be8612878c84049ab24af737fb6ac'
"""SHA-256 of names and shapes of the 746 tensors of hustvl/VAD 1688c4b, VAD_tiny_stage_2.py."""


@pytest.mark.matrix
def test_the_published_checkpoint_has_the_names_and_shapes_of_the_model():
    detector = detectors.read_config('projects/configs/VAD/VAD_tiny_stage_2.py')
    detectors.build(detector)
    state = sorted(detector.model.state_dict().items())
    names = '\n'.join(f'{name} {"x".join(map(str, values.shape))}' for name, values in state)
    assert len(state) == 746 and hashlib.sha256(names.encode()).hexdigest() == UPSTREAM
