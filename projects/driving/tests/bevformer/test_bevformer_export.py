"""BEVFormer's portable contract: proven as a stream; faults in graph and runtime are not."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import rotate

import toy_drive_goldens
from eager_files import eager_row
from mm2onnx_driving.autoware.check import read_manifest, sizes_of
from mm2onnx_driving.autoware.nodes import BEVFORMER
from mm2onnx_driving.bevformer import runtime
from mm2onnx_driving.bevformer.family import BevFormerFamily
from mm2onnx_driving.common.runtime import bev_frames
from mm2onnx_driving.folder_rules import expected_shape
from mm2onnx_driving.layers.bev_steps import rotate_view
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.violations import WARNING
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.runtime import bev_motion
from mmdeploy_ext.runtime.bev_motion import can_bus_record, record_of_pose
from mmdeploy_ext.runtime.frames import Frame, StreamState
from proofs import drive_row, prove
from toy_frames import BEVFORMER as toy

FRAMES = 3
RECORD = np.array([12.0, -7.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 9.8, 0, 0, 0.1, 5.0, 0.1, 0, 0.8, 45.8])


detector, paths = toy.fixtures()


def drive(detector, frames=FRAMES):
    return synthetic_drive(frames, detector.rule, scenes=min(frames, 2))


def test_the_file_is_proven_as_a_stream(detector, paths):
    verdict = prove(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 300


@pytest.mark.parametrize('contract', ['trt-plugin', 'autoware'])
def test_the_loops_of_other_programs_give_the_results_of_pytorch(detector, tmp_path, contract):
    row, specs = eager_row(detector, tmp_path, drive(detector), contract=contract)
    assert row.passed and row.matched >= 100, row.reasons
    (spec,) = specs.values()
    if contract == 'trt-plugin':
        assert spec.input_names == ['image', 'prev_bev', 'use_prev_bev', 'can_bus', 'lidar2img']
        assert spec.output_names == ['bev_embed', 'outputs_classes', 'outputs_coords']
        return
    values, violations = read_manifest(BEVFORMER, tmp_path)
    sizes, (file,) = sizes_of(BEVFORMER, values), BEVFORMER.files
    bound = [(tensor.name, expected_shape(tensor.axes, sizes)) for tensor in (*file.inputs, *file.outputs)]
    wrong = [one for one in violations if one.severity != WARNING]  # classes that the node has not
    assert (wrong, bound) == ([], [(one.name, one.axes) for one in (*spec.inputs, *spec.outputs)])
    rule, coder = detector.rule, detector.cfg.model.pts_bbox_head.bbox_coder
    expected = dict(mean=[*rule.mean], std=[*rule.std], to_rgb=rule.to_rgb, pc_range=[*coder.pc_range])
    assert {name: sizes[name] for name in expected} == expected
    assert sizes['post_center_range'] == [*coder.post_center_range]


def test_the_toy_gives_the_recorded_numbers(detector):
    toy_drive_goldens.check(detector)


def test_the_first_frame_takes_any_finite_view(detector, paths):
    runner = detector.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    frame = next(iter(drive(detector, 1)))
    empty = runner.step(frame).outputs
    noise = np.random.default_rng(0).standard_normal(empty['bev_embed'].shape).astype(np.float32)
    runner.state = StreamState(
        dict(bev_embed=noise, position=np.zeros(3), heading=np.zeros(1)), frame.ego_pose, 0.0, 'another'
    )
    noise = runner.step(frame).outputs
    for name, values in empty.items():
        np.testing.assert_array_equal(values, noise[name])
    state, expected = runner.state, runner.state
    for values in (*state.tensors.values(), state.ego_pose):
        values += 1
    for name, values in expected.tensors.items():
        np.testing.assert_array_equal(runner.state.tensors[name], values)
    np.testing.assert_array_equal(runner.state.ego_pose, expected.ego_pose)


@pytest.mark.matrix
def test_gathers_stand_for_every_grid_sample(detector, paths, tmp_path):
    gathers = toy.export(detector, tmp_path, grid_sample='gather')
    assert 'GridSample' not in {node.op_type for node in load(gathers[0]).graph.node}
    results = []
    for files in (paths, gathers):
        runner = detector.family.runner(files, dict(engine='OnnxRuntimeBackend'))
        results.append([runner.step(frame).outputs for frame in drive(detector, 2)])
    for sampled, gathered in zip(*results, strict=True):
        np.testing.assert_allclose(gathered['bev_embed'], sampled['bev_embed'], rtol=0, atol=1e-5)


def test_cells_between_two_cells_are_counted_as_ties():
    assert bev_motion.rotation_ties(0.0, (100, 100), (50, 50)) == 0
    assert bev_motion.rotation_ties(90.0, (100, 100), (150, 150)) == 0
    assert bev_motion.rotation_ties(12.3, (100, 100), (50, 50)) == 0
    assert bev_motion.rotation_ties(90.0, (10.5, 11), (21, 21)) == 21 * 21  # each source is on an edge


@pytest.mark.parametrize(
    ('stated', 'version', 'convention'),
    [('', '1.0.0rc6', '1.x'), ('0.17', '1.0.0rc6', '0.17')],
)
def test_the_boxes_are_those_that_config_or_checkpoint_state(detector, tmp_path, stated, version, convention):
    path = tmp_path / 'toy.pth'
    content = torch.load(detector.checkpoint, weights_only=True)
    content.setdefault('meta', {})['mmdet3d_version'] = version
    torch.save(content, path)
    options = dict(box_convention=stated) if stated else {}
    model = detectors.load(toy.config, str(path), cfg_options=options).model
    assert model.box_convention == convention


shift, since = bev_motion.bev_shift, bev_motion.motion_since
FAULTS = {
    'x and y of the shift exchanged': ((bev_frames, 'bev_shift'), lambda *given: shift(*given)[::-1]),
    'motion since the first frame': (
        (bev_frames, 'motion_since'),
        lambda record, previous: since(record, None),
    ),
}
"""What is wrong -> (module and name of a public function), and what is put in its place."""


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(detector, paths, fault):
    (module, name), wrong = FAULTS[fault]
    with mock.patch.object(module, name, wrong):
        assert not drive_row(detector, paths, drive(detector)).passed


def test_a_record_has_the_real_part_of_the_orientation_four_times():
    half = np.sqrt(0.5)
    record = can_bus_record((3, 4, 5), (half, 0, 0, half), RECORD)
    np.testing.assert_allclose(record[:7], [3, 4, 5, half, half, half, half])
    np.testing.assert_array_equal(record[7:16], RECORD[7:16])
    np.testing.assert_allclose(record[16:], [np.pi / 2, 90])
    assert can_bus_record((0, 0, 0), (half, 0, 0, -half))[17] == pytest.approx(270)


def test_a_pose_stands_for_a_record():
    pose = np.eye(4)
    pose[:3, 3] = 10, 20, 1.8
    record = record_of_pose(pose)  # the LiDAR's y is ahead, so that the car looks along the map's y
    np.testing.assert_allclose(record[:3], [10, 20, 1.8])
    np.testing.assert_allclose(record[[3, 16, 17]], [np.sqrt(0.5), np.pi / 2, 90])


def test_records_of_another_kind_than_the_model_was_trained_with_are_refused(detector, paths):
    frame = next(iter(drive(detector, 1)))
    quaternion = RECORD.copy()
    quaternion[3:7] = 0.8, 0.0, 0.0, 0.6
    runner = detector.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    assert runner.metadata.postprocess.can_bus_orientation == 'wwww'
    for stepper in (runner, detector.family.reference(detector.model)):
        assert stepper.step(dataclasses.replace(frame, can_bus=RECORD, scene_token=None)).was_reset
        with pytest.raises(DataError, match='can_bus'):
            stepper.step(dataclasses.replace(frame, can_bus=quaternion))
    other = dataclasses.replace(frame, can_bus=quaternion)
    np.testing.assert_array_equal(bev_frames.record_of(other, 'wxyz'), quaternion)


def test_a_view_of_unequal_sides_turns_and_moves_by_its_own():
    transformer = SimpleNamespace(rotate_center=[3, 4], rotate_prev_bev=False, use_shift=True)
    coder = SimpleNamespace(max_num=7, post_center_range=[-1, -2, -3, 4, 5, 6], score_threshold=None)
    head = dict(num_classes=2, bbox_coder=coder, bev_h=6, bev_w=9, pc_range=[-8, -10, -5, 10, 20, 3])
    head = SimpleNamespace(**head, transformer=transformer)
    facts = BevFormerFamily().facts(SimpleNamespace(pts_bbox_head=head, can_bus_orientation='wxyz'))
    assert (facts.rotate_prev_bev, facts.can_bus_orientation) == (False, 'wxyz')
    record, before = np.zeros((2, 18))
    record[:2], record[16:], before[17] = (3.0, -1.0), (0.8, 45.8), 15.8
    frame, found = Frame(None, None, None, None, 0.0, None, can_bus=record), {}
    for moves in (True, False):
        metadata = SimpleNamespace(postprocess=dataclasses.replace(facts, use_shift=moves))
        found[moves] = runtime.BevFormerOnnx.feeds_of(SimpleNamespace(metadata=metadata), frame, before)
    length, angle = np.hypot(3, 1), 0.8 - np.arctan2(-1, 3)
    expected = length * np.sin(angle) / 18, length * np.cos(angle) / 30
    np.testing.assert_allclose(found[True]['bev_shift'], expected)
    assert not found[False]['bev_shift'].any()
    view, rotation = 1 + torch.arange(54.0).reshape(1, 6, 9), torch.from_numpy(found[True]['bev_rotation'])
    turned = rotate_view(view.reshape(54, 1), rotation, 6, 9).reshape(1, 6, 9)
    assert torch.equal(turned, rotate(view, 30.0, center=[3, 4]))
