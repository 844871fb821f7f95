"""BEVFormer's portable contract: proven as a stream; faults in graph and runtime are not."""

import copy
import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet.models.utils.transformer import DetrTransformerDecoderLayer

from marking import in_suite
from mmdeploy_ext.core.errors import ConfigError, DataError, ShapeError
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.bevformer import family, graphs, runtime
from mmdeploy_ext.families.bevformer.runtime import BevFormerOnnx
from mmdeploy_ext.graph.io.files import load
from mmdeploy_ext.models.bevformer import steps
from mmdeploy_ext.models.bevformer.transformer import BEVFormerLayer
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.provenance import unequal_entries
from mmdeploy_ext.runtime import bev_motion
from mmdeploy_ext.runtime.bev_motion import can_bus_record, record_of_pose
from mmdeploy_ext.runtime.frames import StreamState
from mmdeploy_ext.seeded.weights import write_seeded
from mmdeploy_ext.synthetic.drive import synthetic_drive
from proofs import prove_samples, refuted
from toy_frames import BEVFORMER as toy
from verdicts import checks_of

FRAMES = 4
PREDICTED = 'cls_scores', 'bbox_preds'
RECORD = np.array([12.0, -7.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 9.8, 0, 0, 0.1, 5.0, 0.1, 0, 0.8, 45.8])


deployment, paths = toy.fixtures()


def drive(deployment, frames=FRAMES):
    return synthetic_drive(frames, deployment.rule)


def test_the_file_is_proven_as_a_stream(deployment, paths):
    verdict, _ = prove(deployment, paths, drive(deployment))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 400


def test_the_first_frame_takes_any_finite_view(deployment, paths):
    runner = deployment.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    frame = next(iter(drive(deployment, 1)))
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
    with pytest.raises(ShapeError, match=r"'position' has shape \(2,\), expected \(3,\)"):
        runner.state = dataclasses.replace(state, tensors=state.tensors | dict(position=np.zeros(2)))
    for name, values in expected.tensors.items():
        np.testing.assert_array_equal(runner.state.tensors[name], values)
    np.testing.assert_array_equal(runner.state.ego_pose, expected.ego_pose)


@pytest.mark.matrix
def test_a_graph_of_gathers_is_proven(deployment, tmp_path):
    paths = toy.export(deployment, tmp_path, grid_sample='gather')
    assert 'GridSample' not in {node.op_type for node in load(paths[0]).graph.node}
    verdict, _ = prove(deployment, paths, drive(deployment))
    assert verdict.passed, verdict.failures


@pytest.mark.matrix
def test_gathers_stand_for_every_grid_sample(deployment, paths, tmp_path):
    gathers = toy.export(deployment, tmp_path, grid_sample='gather')
    assert 'GridSample' not in {node.op_type for node in load(gathers[0]).graph.node}
    results = []
    for files in (paths, gathers):
        runner = deployment.family.runner(files, dict(engine='OnnxRuntimeBackend'))
        results.append([runner.step(frame).outputs for frame in drive(deployment, 2)])
    for sampled, gathered in zip(*results, strict=True):
        np.testing.assert_allclose(gathered['bev_embed'], sampled['bev_embed'], rtol=0, atol=1e-5)


class Clamped(DetrTransformerDecoderLayer):
    def forward(self, query, *args, **kwargs):
        return super().forward(query, *args, **kwargs).clamp(-3e4, 3e4)


class Halved(BEVFormerLayer):
    def forward(self, query, *args, **kwargs):
        return query / 2


@pytest.mark.matrix
def test_a_layer_of_the_users_that_the_graph_computes_by_itself_is_named(paths, tmp_path):
    deployment = toy.load(tmp_path)
    deployment.model.pts_bbox_head.transformer.decoder.layers[1].__class__ = Clamped
    verdict, _ = prove_samples(deployment, paths, drive(deployment, 2))
    assert verdict.by_inputs == 'Clamped.forward is run by PyTorch alone'


def test_a_layer_that_our_head_never_calls_is_refused(tmp_path):
    model = toy.load(tmp_path).model
    family.check_parts('toy.py', model)
    model.pts_bbox_head.transformer.encoder.layers[1].__class__ = Halved
    with pytest.raises(
        ConfigError, match=r'toy.py: Halved.forward \(.*\) is never called: .* of your own code'
    ):
        family.check_parts('toy.py', model)


def test_cells_between_two_cells_are_counted_as_ties():
    assert bev_motion.rotation_ties(0.0, (100, 100), (50, 50)) == 0
    assert bev_motion.rotation_ties(90.0, (100, 100), (150, 150)) == 0
    assert bev_motion.rotation_ties(12.3, (100, 100), (50, 50)) == 0
    assert bev_motion.rotation_ties(90.0, (10.5, 11), (21, 21)) == 21 * 21  # each source is on an edge


@pytest.mark.suite('--0.17', '-1.0.0rc6-1.x')
@pytest.mark.parametrize(
    ('stated', 'version', 'convention'),
    [('', '', '0.17'), ('', '0.17.1', '0.17'), ('', '1.0.0rc6', '1.x'), ('0.17', '1.0.0rc6', '0.17')],
)
def test_the_boxes_are_those_that_config_or_checkpoint_state(tmp_path, stated, version, convention):
    path = tmp_path / 'toy.pth'
    write_seeded(toy.config, str(path))
    content = torch.load(path, weights_only=True)
    content.setdefault('meta', {})['mmdet3d_version'] = version
    torch.save(content, path)
    options = dict(box_convention=stated) if stated else {}
    model = deploy.load(toy.config, str(path), cfg_options=options).model
    assert model.box_convention == convention


def test_a_file_says_whose_boxes_it_has_and_the_runtime_turns_them(deployment, paths):
    runner = deployment.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    facts = runner.metadata.postprocess
    outputs = runner.step(next(iter(drive(deployment, 1)))).outputs
    old, (logits, codes) = runner.boxes_of(outputs), (outputs[f'all_{name}'] for name in PREDICTED)
    new = runtime.decode(logits, codes, dataclasses.replace(facts, box_convention='1.x'))
    assert facts.box_convention == '0.17'
    np.testing.assert_array_equal(old.boxes[:, [4, 3, 5]], new.boxes[:, 3:6])
    turned = -new.boxes[:, 6] - np.pi / 2
    np.testing.assert_allclose(np.cos(old.boxes[:, 6]), np.cos(turned), atol=1e-6)
    np.testing.assert_allclose(np.sin(old.boxes[:, 6]), np.sin(turned), atol=1e-6)
    edited = dataclasses.replace(facts, box_convention='1.x')
    assert 'box_convention' in unequal_entries(edited.to_json(), facts.to_json())


def bilinear(view, rotation, height, width):
    picture = view.t().reshape(1, -1, height, width)
    x = (torch.arange(width) - width / 2 + 0.5).expand(height, -1)
    y = (torch.arange(height) - height / 2 + 0.5)[:, None].expand(-1, width)
    grid = torch.stack([x, y, torch.ones_like(x)], -1) @ rotation.t()
    return torch.nn.functional.grid_sample(picture, grid[None], align_corners=False)[0].flatten(1).t()


def by_atan(motion, extent):
    """The direction as a deployment repository computes it: wrong where the way is along an axis."""
    dx, dy = motion[:2]
    angle = np.arctan(dy / (dx + 1e-8)) + (1 - np.sign(dx)) / 2 * np.sign(dy) * np.pi
    length = np.hypot(dx, dy)
    return shift(np.r_[length * np.cos(angle), length * np.sin(angle), motion[2:]], extent)


def changed(function, change):
    """Return a function whose arguments are changed before it is called."""
    return lambda *arguments: function(*change(*arguments))


def initial_query(head, maps, can_bus, lidar2img, size, last, operators):
    """At the first frame the query of the encoder's input stands for the view, in each layer."""
    queries, _ = steps.cell_queries(head, can_bus)
    cells = last.cells * last.exists + queries * (1 - last.exists)
    seen = steps.LastView(cells, last.shift * last.exists, torch.ones_like(last.exists))
    return steps.encode_view(head, maps, can_bus, lidar2img, size, seen, operators)


def first_rig(original):
    kept = {}

    def step(self, frame):
        kept.setdefault('lidar2img', frame.lidar2img)
        return original(self, dataclasses.replace(frame, **kept))

    return step


def record_with(change):
    checked = runtime.check_record
    return lambda record: change(checked(record))


WRONG_RECORDS = {
    'nothing measured': record_with(lambda record: record * ~np.isin(range(18), range(7, 16))),
    'velocity first': record_with(
        lambda record: record[[*range(7), 13, 14, 15, 10, 11, 12, 7, 8, 9, 16, 17]]
    ),
    'a heading below 0': record_with(
        lambda record: record - (record[17] > 180) * np.r_[np.zeros(16), 2 * np.pi, 360]
    ),
}
runtime_decode = runtime.decode
rotation, shift, since = bev_motion.bev_rotation, bev_motion.bev_shift, bev_motion.motion_since
FAULTS = {
    'rotation about the middle of the view': (
        (runtime, 'bev_rotation'),
        changed(rotation, lambda degrees, center, size: (degrees, (size[1] / 2, size[0] / 2), size)),
    ),
    'rotation reversed': (
        (runtime, 'bev_rotation'),
        changed(rotation, lambda degrees, *rest: (-degrees, *rest)),
    ),
    'bilinear rotation': ((graphs, 'rotate_view'), bilinear),
    'no rotation': ((graphs, 'rotate_view'), lambda view, *_: view),
    'no shift': ((runtime, 'bev_shift'), lambda *_: np.zeros(2)),
    'x and y of the shift exchanged': ((runtime, 'bev_shift'), lambda *given: shift(*given)[::-1]),
    'atan for atan2': ((runtime, 'bev_shift'), by_atan),
    'motion since the first frame': ((runtime, 'motion_since'), lambda record, previous: since(record, None)),
    'angles of the record zero': (
        (runtime, 'motion_since'),
        lambda record, previous: since(record, previous) * np.array([1] * 16 + [0, 1]),
    ),
    'heading of a pose mirrored': (
        (runtime, 'record_of_pose'),
        lambda pose: np.r_[record_of_pose(pose)[:16], -record_of_pose(pose)[16:] % (2 * np.pi, 360)],
    ),
    **{f'record: {name}': ((runtime, 'check_record'), wrong) for name, wrong in WRONG_RECORDS.items()},
    'boxes as they were trained': (
        (runtime, 'decode'),
        lambda *given: runtime_decode(*given[:2], dataclasses.replace(given[2], box_convention='1.x')),
    ),
    'the first frame with the initial query': ((graphs, 'encode_view'), initial_query),
    'the rig of the first frame': ((BevFormerOnnx, 'step'), first_rig(BevFormerOnnx.step)),
    'the first frame looks at the view': (
        (graphs, 'LastView'),
        lambda cells, shift, exists: steps.LastView(cells, shift, 0 * exists + 1),
    ),
}
"""What is wrong -> (module and name of a public function), and what is put in its place."""
IN_SUITE = ('x and y of the shift exchanged',)


@pytest.mark.parametrize('fault', in_suite(FAULTS, *IN_SUITE))
def test_a_fault_in_our_own_code_is_not_proven(deployment, tmp_path, fault):
    (module, name), wrong = FAULTS[fault]
    with mock.patch.object(module, name, wrong):
        verdict = refuted(deployment, toy.export(deployment, tmp_path), drive(deployment))
    assert not verdict.passed
    assert all(check.passed for check in checks_of(verdict))


def test_a_record_has_the_real_part_of_the_orientation_four_times():
    half = np.sqrt(0.5)
    record = can_bus_record((3, 4, 5), (half, 0, 0, half), RECORD)
    np.testing.assert_allclose(record[:7], [3, 4, 5, half, half, half, half])
    np.testing.assert_array_equal(record[7:16], RECORD[7:16])
    np.testing.assert_allclose(record[16:], [np.pi / 2, 90])
    assert can_bus_record((0, 0, 0), (half, 0, 0, -half))[17] == pytest.approx(270)


@pytest.mark.parametrize('measured', [np.zeros(7), np.full(18, np.nan), np.zeros((18, 1))])
def test_a_record_of_other_numbers_is_refused(measured):
    with pytest.raises(DataError, match=r'can_bus of an info: got .*, expected 18 finite numbers'):
        can_bus_record((0, 0, 0), (1, 0, 0, 0), measured)


def test_a_pose_stands_for_a_record():
    pose = np.eye(4)
    pose[:3, 3] = 10, 20, 1.8
    record = record_of_pose(pose)  # the LiDAR's y is ahead, so that the car looks along the map's y
    np.testing.assert_allclose(record[:3], [10, 20, 1.8])
    np.testing.assert_allclose(record[[3, 16, 17]], [np.sqrt(0.5), np.pi / 2, 90])


def test_records_of_another_kind_than_the_model_was_trained_with_are_refused(deployment, paths):
    frame = next(iter(drive(deployment, 1)))
    quaternion = RECORD.copy()
    quaternion[3:7] = 0.8, 0.0, 0.0, 0.6
    runner = deployment.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    assert runner.metadata.postprocess.can_bus_orientation == 'wwww'
    for stepper in (runner, deployment.family.reference(deployment.model)):
        assert stepper.step(dataclasses.replace(frame, can_bus=RECORD, scene_token=None)).was_reset
        with pytest.raises(
            DataError, match='a unit quaternion w, x, y, z; the model was trained with the real'
        ):
            stepper.step(dataclasses.replace(frame, can_bus=quaternion))
    other = dataclasses.replace(frame, can_bus=quaternion)
    np.testing.assert_array_equal(runtime.record_of(other, 'wxyz'), quaternion)
    with pytest.raises(DataError, match='trained with a unit quaternion'):
        runtime.record_of(frame, 'wxyz')


@pytest.mark.parametrize('name', WRONG_RECORDS)
def test_pytorch_gets_the_record_that_a_frame_has_whatever_the_runner_makes_of_it(deployment, paths, name):
    record = np.r_[RECORD[:16], np.radians(300), 300]
    frame = dataclasses.replace(next(iter(drive(deployment, 1))), can_bus=record)
    steppers = (
        deployment.family.runner(paths, dict(engine='OnnxRuntimeBackend')),
        deployment.family.reference(deployment.model),
    )
    with mock.patch.object(runtime, 'check_record', WRONG_RECORDS[name]):
        got, expected = (stepper.step(frame).outputs['bev_embed'] for stepper in steppers)
    assert np.abs(got - expected).max() > 0.01


@pytest.mark.parametrize('key', ['box_convention', 'can_bus_orientation'])
def test_a_wrong_fact_of_the_training_is_refused_by_name(tmp_path, key):
    path = tmp_path / 'toy.pth'
    write_seeded(toy.config, str(path))
    with pytest.raises(ConfigError, match=f"{key}='xyzw', expected"):
        deploy.load(toy.config, str(path), cfg_options={key: 'xyzw'})


def test_options_of_the_encoder_that_our_layer_reads_otherwise_are_refused(deployment):
    cfg = copy.deepcopy(deployment.cfg)
    layer = cfg.model.pts_bbox_head.transformer.encoder.transformerlayers
    layer.act_cfg = dict(type='ReLU', inplace=True)
    deployment.family.build(cfg)
    layer.act_cfg, layer.ffn_cfgs = dict(type='GELU'), dict(type='FFN')
    layer.operation_order = ('norm', 'self_attn', 'norm', 'cross_attn', 'norm', 'ffn')
    with pytest.raises(ConfigError, match=r'transformerlayers: act_cfg=.*ffn_cfgs=.*operation_order='):
        deployment.family.build(cfg)


def test_a_detector_that_forgets_by_default_is_refused_by_name(deployment):
    cfg = copy.deepcopy(deployment.cfg)
    del cfg.model['video_test_mode']
    with pytest.raises(ConfigError, match='video_test_mode is not stated, and False by default'):
        deployment.family.build(cfg)


@pytest.mark.parametrize(('record', 'named'), [(np.zeros(17), '18 finite'), (RECORD * np.nan, '18 finite')])
def test_a_record_that_is_none_is_refused(deployment, paths, record, named):
    frame = dataclasses.replace(next(iter(drive(deployment, 1))), can_bus=record)
    runner = deployment.family.runner(paths, dict(engine='OnnxRuntimeBackend'))
    with pytest.raises(DataError, match=named):
        runner.step(frame)
