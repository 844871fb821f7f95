"""Sparse4D's contracts: proven as a stream with track ids; faults in graph, bank and coder are not."""

import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from marking import in_suite
from mmdeploy_ext.consumers.sparseend2end.loop import CONSTANTS, SparseEnd2EndOnnx
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, DataError, ModelFileError, ShapeError
from mmdeploy_ext.exporting.ops import deformable_aggregation
from mmdeploy_ext.families.sparse4d import graphs
from mmdeploy_ext.families.sparse4d import memory as bank
from mmdeploy_ext.families.sparse4d.family import Sparse4DFamily
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.open_points import untraced_methods
from mmdeploy_ext.synthetic.drive import SyntheticDrive, synthetic_drive
from proofs import OF_OTHER_CONTRACTS, prove_samples, refuted
from toy_frames import SPARSE4D as toy
from verdicts import checks_of

FRAMES = 4
ENGINE = dict(engine='OnnxRuntimeBackend')


deployment, paths = toy.fixtures()


def drive(deployment, frames=FRAMES, **settings):
    """Two scenes with a pause of ten seconds between them, which nothing resets."""
    return synthetic_drive(frames, deployment.rule, scenes=2, **settings)


def test_one_graph_is_proven_as_a_stream(deployment, paths):
    verdict, _ = prove(deployment, paths, drive(deployment))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 300


@pytest.mark.parametrize(
    ('name', 'method'),
    [('anchor_encoder', 'forward'), ('instance_bank', 'update'), ('layers.4', 'project_points')],
)
def test_a_method_of_the_users_that_the_graph_computes_is_named(deployment, monkeypatch, name, method):
    part = deployment.model.head.get_submodule(name)
    own = type('Own', (type(part),), {method: lambda self: None})
    assert untraced_methods(deployment.family, deployment.model, deployment.cfg) == []
    monkeypatch.setattr(part, '__class__', own)
    (found,) = untraced_methods(deployment.family, deployment.model, deployment.cfg)
    assert found.subject.startswith(f'Own.{method} (')


@pytest.mark.parametrize(
    'options',
    in_suite(
        [dict(contract='deploy'), dict(grid_sample='operator'), dict(exporter='dynamo')],
        dict(contract='deploy'),
    ),
    ids=str,
)
@pytest.mark.parametrize('proof', OF_OTHER_CONTRACTS)
def test_other_files_are_proven(deployment, tmp_path, options, proof):
    verdict, _ = proof(deployment, toy.export(deployment, tmp_path, **options), drive(deployment))
    assert verdict.passed, verdict.failures


@pytest.mark.matrix
def test_a_file_in_float16_is_within_its_bars(deployment, tmp_path):
    paths = toy.export(deployment, tmp_path, precision='fp16')
    verdict, _ = prove(deployment, paths, drive(deployment), ENGINE | dict(round_fp16=True))
    assert verdict.passed and 'WITHIN FP16 BARS' in verdict.title, verdict.failures
    assert 'which instances are handed on, and the ids of their tracks, were not compared' in verdict.notes


def test_the_first_frame_takes_any_finite_instances(deployment, paths):
    runner = deployment.family.runner(paths, ENGINE)
    frame = next(iter(drive(deployment, 1)))
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


def test_no_scene_empties_the_memory_as_published(deployment, paths):
    runner = deployment.family.runner(paths, ENGINE)
    frames = [
        dataclasses.replace(frame, scene_token=token, timestamp_s=0.5 * index)
        for index, (frame, token) in enumerate(zip(drive(deployment, 3), ('a', 'b', None), strict=True))
    ]
    assert [runner.step(frame).was_reset for frame in frames] == [True, False, False]
    state = runner.state
    assert state.scene_token == 'b' and state.tensors['prev_id'][0] > 0
    for change in (dict(ego_pose=np.full((4, 4), np.nan)), dict(timestamp_s=float('nan'))):
        with pytest.raises(DataError):
            runner.state = dataclasses.replace(state, **change)
    tensors = state.tensors | dict(confidence=np.zeros((1, 1), np.float32))
    with pytest.raises(ShapeError, match=r'confidence.*another model'):
        runner.state = dataclasses.replace(state, tensors=tensors)
    np.testing.assert_array_equal(runner.state.tensors['confidence'], state.tensors['confidence'])


def test_the_contract_states_the_intervals_of_the_model(deployment):
    spec = graphs.spec(deployment.model)
    interval, mask = (spec.tensor(name).meaning for name in ('time_interval', 'mask'))
    assert interval == 'seconds since the last frame, 0.5 if 0 or more than 2'
    assert mask == '1 if the last frame is at most 2 s away, else 0'


def changed(function, change):
    """Return a function whose arguments are changed before it is called."""
    return lambda *arguments, **named: function(*change(*arguments), **named)


def with_result(function, change):
    """Return a function whose result is changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def to_the_edge(places):
    """The border of GridSample: points up to half a cell outside of the picture give their part."""
    return torch.ones(places.shape[:-1], dtype=torch.bool, device=places.device)


def interval_of_gap(anchor, motion, seconds):
    """Behind a gap anchors are projected with the default of half a second."""
    return anchor, motion, seconds if abs(seconds) <= 2 else 0.5


def from_second_row(scores, count):
    return top_rows(scores, count + 1)[1:] if count == 40 else top_rows(scores, count)


def with_facts(function, **changes):
    """Return a function of facts and others that gets changed facts."""
    return lambda facts, *others: function(dataclasses.replace(facts, **changes), *others)


def unturned(motion):
    moved = np.array(motion)
    moved[:3, :3] = np.eye(3)
    return moved


def ids_anew(*arguments):
    return {**next_bank(*arguments), 'prev_id': np.array([0], np.int64)}


top_rows, project, inputs_of = bank.top_rows, bank.project_anchors, bank.temporal_inputs
tracked, next_bank = bank.tracked, bank.next_bank
FAULTS = {
    'the border of GridSample': ((deformable_aggregation, '_in_pictures'), to_the_edge),
    'the absolute value of the interval': (
        (bank, 'project_anchors'),
        changed(project, lambda anchor, motion, seconds: (anchor, motion, abs(seconds))),
    ),
    'half a second for the true gap': ((bank, 'project_anchors'), changed(project, interval_of_gap)),
    'projection without rotation': (
        (bank, 'project_anchors'),
        changed(project, lambda anchor, motion, seconds: (anchor, unturned(motion), seconds)),
    ),
    'velocity unused by the projection': (
        (bank, 'project_anchors'),
        changed(project, lambda anchor, motion, seconds: (anchor, motion, 0.0)),
    ),
    'no decay of confidences': ((bank, 'tracked'), with_facts(tracked, confidence_decay=0.0)),
    'ids begin anew in every frame': ((bank, 'next_bank'), ids_anew),
    'ids only above a threshold': ((bank, 'tracked'), with_facts(tracked, score_threshold=0.5)),
    'kept rows off by one': ((bank, 'top_rows'), from_second_row),
    'stale features zeroed': (
        (bank, 'temporal_inputs'),
        with_result(inputs_of, lambda inputs: inputs._replace(feature=inputs.feature * inputs.mask[0])),
    ),
    'sine and cosine kept in order': (
        (bank, 'project_anchors'),
        with_result(project, lambda anchor: anchor[..., [*range(6), 7, 6, 8, 9, 10]]),
    ),
}
"""What is wrong -> (owner and name of a function), and what is put in its place."""


IN_SUITE = 'the border of GridSample', 'ids begin anew in every frame'


def frames_of_faults(deployment):
    """Four frames: a second one 0.5 s later, a third one earlier than it, a fourth behind a gap."""
    frames = list(SyntheticDrive(4, deployment.rule.input_size, scenes=1, jump_s=0.0))
    times = 0.0, 1.9, 1.2, 5.4
    pairs = zip(frames, times, strict=True)
    return [dataclasses.replace(frame, timestamp_s=1.5e9 + time) for frame, time in pairs]


@pytest.mark.suite('ids begin anew in every frame')
@pytest.mark.parametrize('fault', in_suite(FAULTS, *IN_SUITE))
def test_a_fault_in_our_own_code_is_not_proven(deployment, paths, tmp_path, fault):
    (owner, name), wrong = FAULTS[fault]
    with mock.patch.object(owner, name, wrong):
        if fault == 'the border of GridSample':  # another deployment: one keeps its fresh export
            deployment = toy.load(tmp_path)
            paths = toy.export(deployment, tmp_path)
        verdict = refuted(deployment, paths, frames_of_faults(deployment))
    assert not verdict.passed
    assert all(check.passed for check in checks_of(verdict))


def test_frames_that_run_backwards_and_gaps_are_proven(deployment, paths):
    verdict, _ = prove_samples(deployment, paths, frames_of_faults(deployment))
    assert verdict.passed, verdict.failures


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (dict(timestamp_s=float('nan')), 'timestamp_s'),
        (dict(ego_pose=np.eye(4) * 2), 'ego_pose'),
        (dict(lidar2img=np.eye(4)[None]), 'lidar2img'),
    ],
)
def test_inputs_that_are_no_numbers_are_refused(deployment, paths, change, named):
    frame = dataclasses.replace(next(iter(drive(deployment, 1))), **change)
    with pytest.raises(DataError, match=named):
        deployment.family.runner(paths, ENGINE).step(frame)


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('use_deformable_func', False),
        ('head.decouple_attn', False),
        ('head.anchor_encoder.output_fc', True),
        ('head.refine_layer.normalize_yaw', True),
        ('head.instance_bank.num_temp_instances', 60),
        ('head.num_single_frame_decoder', 3),
        ('head.num_single_frame_decoder', -1),
    ],
)
def test_a_model_that_the_graphs_do_not_follow_is_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        Sparse4DFamily.models.check(load_config(toy.config, {f'model.{setting}': value}))


@pytest.fixture(scope='module')
def deployed(deployment, tmp_path_factory):
    folder = tmp_path_factory.mktemp('deploy')
    return Path(toy.export(deployment, folder, contract='deploy')[0]).parent


@pytest.mark.parametrize('content', [None, '{}', '[]', '{"anchor": [1]', '{"instance_feature": [[[1]]]}'])
def test_heads_without_their_constants_are_refused(deployed, tmp_path, content):
    for path in deployed.glob('*.onnx'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is not None:
        (tmp_path / CONSTANTS).write_text(content)
    with pytest.raises(ModelFileError, match='sparse4dconstants'):
        SparseEnd2EndOnnx(tmp_path)
