"""PETR's and PETRv2's contracts: proven as streams; faults in graphs and runtime are not."""

import contextlib
import copy
import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import petr_golden as golden
import toy_frames
from marking import in_suite
from mmdeploy_ext.contract.metadata import Metadata, read_props
from mmdeploy_ext.core.config import test_pipeline as pipeline_of
from mmdeploy_ext.core.errors import ConfigError, DataError, InferenceError, ShapeError
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import Claim, find_family
from mmdeploy_ext.families.parts import box_conventions
from mmdeploy_ext.families.petr import runtime
from mmdeploy_ext.families.petr.family import PETR, PETRV2
from mmdeploy_ext.families.petr.reference import PetrReference
from mmdeploy_ext.families.petr.runtime import PetrOnnx
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.synthetic.drive import synthetic_drive
from verdicts import checks_of

TOYS = dict(petr=toy_frames.PETR, petrv2=toy_frames.PETRV2)
ENGINE = dict(engine='OnnxRuntimeBackend')


@pytest.fixture(scope='module')
def deployments(tmp_path_factory):
    return {name: toy.load(tmp_path_factory.mktemp(name)) for name, toy in TOYS.items()}


@pytest.fixture(scope='module')
def exports(deployments, tmp_path_factory):
    """(toy, contract) -> paths of its files, exported when one is asked for."""
    made = {}

    def export(name, contract='portable'):
        if (name, contract) not in made:
            folder = tmp_path_factory.mktemp(f'{name}_{contract}')
            made[name, contract] = TOYS[name].export(deployments[name], folder, contract=contract)
        return made[name, contract]

    return export


def drive(deployment, frames=4):
    return synthetic_drive(frames, deployment.rule)


@pytest.mark.parametrize(
    ('name', 'contract'),
    in_suite(
        [(name, contract) for name in TOYS for contract in ('portable', 'dl4agx')], ('petrv2', 'portable')
    ),
)
def test_the_files_are_proven_as_a_stream(deployments, exports, name, contract):
    deployment = deployments[name]
    verdict, _ = prove(deployment, exports(name, contract), drive(deployment))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 700
    notes = ' '.join(verdict.notes)
    assert ('for EVERY frame' in notes) == (name == 'petrv2' and contract == 'dl4agx')
    assert ('whenever calibration, resize or crop change' in notes) == (
        name == 'petr' and contract == 'dl4agx'
    )


@pytest.mark.parametrize('name', in_suite(TOYS, 'petrv2'))
def test_names_and_ranks_are_those_of_dl4agx(exports, name):
    content = json.loads((golden.require_golden() / 'contract.json').read_text())['graphs']
    files = {path.rpartition('/')[2]: path for path in exports(name, 'dl4agx')}
    version = 'PETRv2' if name == 'petrv2' else 'PETRv1'
    for file, graph in content.items():
        if not file.startswith(version):
            continue
        model = onnx.load(files[file]).graph
        for side in ('inputs', 'outputs'):
            values = model.input if side == 'inputs' else model.output
            actual = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
            assert actual == {entry['name']: len(entry['shape']) for entry in graph[side]}


def test_the_metadata_say_how_long_each_input_is_valid(exports):
    (*_, head) = exports('petrv2')
    metadata = Metadata.from_props(read_props(head), head)
    valid_for = metadata.postprocess.valid_for
    assert set(metadata.spec.input_names) <= valid_for.keys()
    assert valid_for['pos_embed'] == 'rig' and valid_for['prev_pos_embed'] == 'frame'
    assert valid_for['mean_time_stamp'] == 'frame' and valid_for['sine_part'] == 'model'
    assert metadata.postprocess.start_gap_s == pytest.approx(1.245)


@pytest.mark.parametrize(('family', 'pictures', 'cameras'), [(PETR, 8, 8), (PETRV2, 14, 7), (PETRV2, 12, 6)])
def test_a_sample_keeps_all_cameras_of_its_rig(family, pictures, cameras):
    matrices = np.stack([np.eye(4) * number for number in range(1, pictures + 1)])
    meta = dict(lidar2img=[*matrices], sample_idx='a')
    frame = family.data.frame(dict(img=[torch.zeros(1, pictures, 3, 2, 2)], img_metas=[[meta]]))
    assert frame.images.shape == (cameras, 3, 2, 2)
    assert (frame.lidar2img == matrices[:cameras]).all() and len(frame.intrinsics) == cameras
    if family.frames == 2:
        with pytest.raises(DataError, match='got 5 pictures; expected those of all cameras for 2 frames'):
            family.data.frame(dict(img=[torch.zeros(1, 5, 3, 2, 2)], img_metas=[[meta]]))


def test_a_rig_of_other_cameras_than_the_model_has_is_refused(deployments):
    deployment = deployments['petr']
    (frame,) = drive(deployment, 1)
    more = np.concatenate([frame.images, frame.images[:2]]), np.concatenate([frame.lidar2img] * 2)[:8]
    reference = deployment.family.reference(deployment.model)
    with pytest.raises(ShapeError, match='got 8 pictures, the model has 6 cameras; state num_cams'):
        reference.step(dataclasses.replace(frame, images=more[0], lidar2img=more[1]))


@pytest.mark.parametrize('name', TOYS)
def test_a_stale_embedding_gives_no_result(deployments, exports, name, monkeypatch):
    deployment = deployments[name]
    runner = deployment.family.runner(exports(name), ENGINE)
    first, second = drive(deployment, 2)
    moved = np.array(second.lidar2img)
    moved[3, 0] *= 1.01
    runner.step(first)
    embedded = runner.run_for_rig(runtime.EMBEDDING, dict(img2lidar=runtime.inverse_of(first.lidar2img)))
    with monkeypatch.context() as stale:
        stale.setattr(runner, 'run_for_rig', lambda name, feeds: embedded)
        with pytest.raises(InferenceError, match='NaN'):
            runner.step(dataclasses.replace(second, lidar2img=moved))
    runner.step(dataclasses.replace(second, lidar2img=moved))


def test_the_embedding_of_a_rig_is_computed_once(deployments, exports, monkeypatch):
    deployment = deployments['petrv2']
    runner = deployment.family.runner(exports('petrv2'), ENGINE)
    graph, matrices = runner.graphs[runtime.EMBEDDING], []
    run = graph.run
    monkeypatch.setattr(graph, 'run', lambda feeds, held=(): matrices.append(feeds) or run(feeds, held))
    for frame in drive(deployment, 3):
        runner.step(dataclasses.replace(frame, scene_token='one'))
    assert len(matrices) == 3  # that of the rig, and of the frame before for two frames
    runner.reset()
    runner.step(frame)
    assert len(matrices) == 3


def test_motion_and_times_are_those_of_the_goldens():
    """Upstream's converter gives the matrices of the frame before, and the mean time."""
    inputs = np.load(golden.require_golden() / 'inputs.npz')

    def values(number, name):
        return inputs[f'v2_f{number}_{name}']

    for number, before in ((1, 0), (3, None), (5, 4), (6, 5), (7, 6)):
        if before is None:
            continue
        motion = runtime.relative_motion(values(before, 'l2g'), values(number, 'l2g'))
        actual = motion @ np.linalg.inv(values(before, 'lidar2img')[:6])
        expected = np.linalg.inv(values(number, 'lidar2img')[6:])
        scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
        assert (np.abs(actual - expected) <= 2e-5 * scale).all()
    for number in range(8):
        ages = values(number, 'timestamp')
        gap = runtime.mean_gap_s(0.0, -ages[:6], -ages[6:])
        np.testing.assert_allclose(gap, values(number, 'mean_time_stamp')[0], rtol=0, atol=1e-6)


def test_times_that_give_no_velocity_are_refused(deployments, exports):
    deployment = deployments['petrv2']
    runner = deployment.family.runner(exports('petrv2'), ENGINE)
    (frame,) = drive(deployment, 1)
    runner.step(frame)
    with pytest.raises(DataError, match='newer than those of the frame before'):
        runner.step(frame)
    with pytest.raises(DataError, match='expected 6 finite times'):
        runner.step(dataclasses.replace(frame, camera_times_s=np.full(6, np.nan)))
    with pytest.raises(DataError, match='ego_pose: is missing'):
        runner.step(dataclasses.replace(frame, ego_pose=None))


def test_the_stepper_in_pytorch_keeps_the_last_frame_as_it_was(deployments):
    deployment = deployments['petrv2']
    reference = PetrReference(deployment.model)
    (frame,) = drive(deployment, 1)
    changed = copy.deepcopy(frame)
    reference.step(changed)
    kept = copy.deepcopy(reference.state)
    for array in (changed.ego_pose, changed.lidar2img):
        array *= 2
    assert np.array_equal(reference.state.ego_pose, kept.ego_pose)
    assert np.array_equal(reference.state.tensors['lidar2img'], kept.tensors['lidar2img'])
    with pytest.raises(DataError, match='timestamp_s: got None'):
        reference.step(dataclasses.replace(frame, timestamp_s=None, camera_times_s=np.zeros(6)))


def test_a_memory_of_another_model_is_refused(deployments, exports):
    deployment = deployments['petrv2']
    runner = deployment.family.runner(exports('petrv2'), ENGINE)
    for frame in drive(deployment, 2):
        runner.step(frame)
    state = runner.state
    runner.state = state
    for name in (None, *state.tensors):  # None: that of a PETR, which has no tensors
        tensors = state.tensors | {name: state.tensors[name][..., :1]} if name else {}
        with pytest.raises(ShapeError, match=r'memory of another model|has no tensor'):
            runner.state = dataclasses.replace(state, tensors=tensors)
    assert runner.state.timestamp_s == state.timestamp_s


def test_a_long_gap_begins_a_scene_unless_the_published_model_is_compared(exports, deployments):
    deployment = deployments['petrv2']
    frame, second = drive(deployment, 2)
    late = dataclasses.replace(second, timestamp_s=frame.timestamp_s + 3.0, scene_token=frame.scene_token)
    for limits, is_reset in ((dict(), True), (dict(max_gap_s=None), False)):
        runner = PetrOnnx(exports('petrv2'), **limits)
        runner.step(frame)
        assert runner.step(late).was_reset == is_reset


GRAPHS, RUNTIME = (f'mmdeploy_ext.families.petr.{module}' for module in ('graphs', 'runtime'))


def first_part(original):
    """The embedding of the frame before is that of the first pair of frames, as DL4AGX's program has it."""
    kept = {}

    def part_before(self, frame, memory):
        part = original(self, frame, memory)
        return {**part, 'pos_embed': kept.setdefault('pos_embed', part['pos_embed'])}

    return part_before


def first_value(original):
    kept = []

    def compute(*arguments):
        kept.append(original(*arguments))
        return kept[0]

    return compute


def shrunk(original):
    """The frame before has intrinsics that a second pass over the infos shrank."""

    def part_before(self, frame, memory):
        matrices = memory.tensors['lidar2img'].copy()
        matrices[:, :2] *= 0.5
        tensors = dict(memory.tensors, lidar2img=matrices)
        return original(self, frame, dataclasses.replace(memory, tensors=tensors))

    return part_before


FAULTS = {
    'the embedding of another frame': ('petrv2', f'{RUNTIME}:PetrOnnx.part_before', first_part),
    'the time of another frame': ('petrv2', f'{RUNTIME}:mean_gap_s', first_value),
    'two cameras exchanged': (
        'petr',
        f'{RUNTIME}:inverse_of',
        lambda original: lambda lidar2img: original(np.asarray(lidar2img)[[1, 0, 2, 3, 4, 5]]),
    ),
    'intrinsics of the frame before shrunk': (
        'petrv2',
        f'{RUNTIME}:PetrOnnx.part_before',
        shrunk,
    ),
    'velocities by a constant of half a second': (
        'petrv2',
        f'{RUNTIME}:mean_gap_s',
        lambda original: lambda *times: np.float32(0.5),
    ),
    'boxes as they were trained': (
        'petr',
        f'{RUNTIME}:decode',
        lambda original: (
            lambda logits, boxes, facts, accepts: original(
                logits, boxes, dataclasses.replace(facts, box_convention='1.x'), accepts
            )
        ),
    ),
    'the motion of the car left out': (
        'petrv2',
        f'{RUNTIME}:relative_motion',
        lambda original: lambda last, present: np.eye(4),
    ),
    'the motion of the car reversed': (
        'petrv2',
        f'{RUNTIME}:relative_motion',
        lambda original: lambda last, present: original(present, last),
    ),
    'tokens of padding take part': (
        'petr',
        f'{GRAPHS}:padding_mask',
        lambda original: lambda *arguments: torch.zeros_like(original(*arguments)),
    ),
    'the first frame keeps the features of the last scene': (
        'petrv2',
        'mmdeploy_ext.runtime.streams:StreamRuntime.begins_scene',
        lambda original: lambda self, last, *moment: original(self, last, *moment) and last is None,
    ),
}
"""What is wrong -> (toy, place of a public name, the change)."""
IN_SUITE = 'velocities by a constant of half a second'


@pytest.mark.parametrize('fault', in_suite(FAULTS, IN_SUITE))
def test_a_fault_in_our_own_code_is_not_proven(deployments, tmp_path, fault):
    name, *change = FAULTS[fault]
    verdict = TOYS[name].verdict_with(tuple(change), deployments[name], tmp_path)
    assert not verdict.passed
    assert all(check.passed for check in checks_of(verdict))


def test_what_the_family_adds_to_a_model_is_that_of_config_and_checkpoint(tmp_path, deployments):
    path = str(tmp_path / 'toy.pth')
    weights = deployments['petrv2'].model.state_dict()
    torch.save(dict(state_dict=weights, meta=dict(mmdet3d_version='1.0.0rc6')), path)
    loaded = deploy.load(TOYS['petrv2'].config, path)
    steps = {step['type']: step for step in pipeline_of(loaded.cfg)}
    sweeps = steps.get('LoadMultiViewImageFromMultiSweepsFiles', {}).get('sweep_range', (3, 27))
    assert loaded.model.box_convention == '1.x'
    assert loaded.model.start_gap_s == pytest.approx(np.mean(sweeps) * 0.083)
    (resize,) = (step for name, step in steps.items() if name.startswith('ResizeCropFlip'))
    assert loaded.model.picture_size == tuple(resize['data_aug_conf']['final_dim'])


@pytest.mark.parametrize('meta', [{}, dict(mmdet3d_version=None)])
def test_a_checkpoint_without_a_version_leaves_the_convention(meta):
    model = SimpleNamespace(box_convention='0.17', states_boxes=False)
    box_conventions.note_convention(model, SimpleNamespace(meta=meta))
    assert model.box_convention == '0.17'


@pytest.mark.parametrize('name', in_suite(TOYS, 'petr'))
def test_boxes_are_those_that_the_config_states(tmp_path, name):
    path = tmp_path / 'toy.pth'
    deployment = TOYS[name].load(tmp_path)
    torch.save(dict(state_dict=deployment.model.state_dict(), meta=dict(mmdet3d_version='1.0.0rc6')), path)
    assert deployment.model.box_convention == '0.17'
    assert deploy.load(TOYS[name].config, str(path)).model.box_convention == '1.x'


def test_frames_of_a_drive_that_is_made_of_a_sample_get_later(deployments):
    """Also of a data set's sample, which has times of its cameras."""
    deployment = deployments['petrv2']
    (frame,) = drive(deployment, 1)
    frame = dataclasses.replace(frame, camera_times_s=np.full(6, frame.timestamp_s - 0.02))
    reference = deployment.family.reference(deployment.model)
    frames = list(reference.special_samples(deployment.rule, frame))
    for before, after in itertools.pairwise(frames):
        times = (runtime.camera_times(after), runtime.camera_times(before))
        assert runtime.mean_gap_s(after.timestamp_s, *times) > 0


def test_heads_of_other_models_belong_to_no_family_of_petr(deployments):
    cfg = deployments['petr'].cfg
    assert find_family(cfg).name == 'petr' and find_family(deployments['petrv2'].cfg).name == 'petrv2'
    family = deployments['petr'].family
    model = dict(cfg.model, pts_bbox_head=dict(type='PETRHead_seg'))
    assert family.claims(type(cfg)(dict(model=model))) == Claim.NO
    wrong = copy.deepcopy(deployments['petrv2'].cfg)
    wrong.model.pts_bbox_head.with_fpe = False
    with pytest.raises(ConfigError, match='with_fpe=False'):
        deployments['petrv2'].family.build(wrong)


SWEEPS = dict(type='LoadMultiViewImageFromMultiSweepsFiles', sweep_range=[3, 27])


@pytest.mark.parametrize(
    ('name', 'steps', 'head', 'message'),
    [
        ('petrv2', [dict(SWEEPS, sweeps_num=2)], {}, 'sweeps_num=2, expected 1, '),
        ('petr', [dict(SWEEPS, sweeps_num=1)], {}, 'sweeps_num=1, expected 0, '),
        ('petrv2', [], dict(position_level=1), r'pts_bbox_head\.position_level=1; expected 0'),
        ('petrv2', [dict(SWEEPS, sweeps_num=1)], dict(position_level=0), ''),
    ],
)
def test_frames_and_levels_that_no_graph_has_are_refused(deployments, name, steps, head, message):
    cfg, family = copy.deepcopy(deployments[name].cfg), deployments[name].family
    cfg.data.test.pipeline = [*cfg.data.test.pipeline, *steps]
    cfg.model.pts_bbox_head.update(head)
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        family.check(cfg, family.choose(opset=0))


def test_another_box_coder_than_that_of_our_head_is_refused(deployments):
    cfg = copy.deepcopy(deployments['petr'].cfg)
    cfg.model.pts_bbox_head.bbox_coder.type = 'NMSFreeClsCoder'
    with pytest.raises(ConfigError, match=r"bbox_coder.type='NMSFreeClsCoder'; expected NMSFreeCoder"):
        deployments['petr'].family.build(cfg)


@pytest.mark.parametrize('name', in_suite(list(TOYS), 'petrv2'))
def test_pictures_give_the_boxes_of_a_prepared_frame(deployments, exports, name):
    frame = next(iter(drive(deployments[name], 1)))
    rng = np.random.default_rng(0)
    rule = deployments[name].rule
    pictures = [rng.integers(0, 256, (*rule.source, 3), np.uint8) for _ in range(rule.num_cameras)]
    rig = (np.array(frame.lidar2img), np.array(frame.intrinsics))
    with PetrOnnx(exports(name)) as one, PetrOnnx(exports(name)) as two:
        found = one.detect(pictures, rig, frame.ego_pose, frame.timestamp_s)
        wanted = two.step(dataclasses.replace(frame, images=rule.apply(pictures), camera_times_s=None))
    np.testing.assert_array_equal(found.boxes, wanted.detections.boxes)
