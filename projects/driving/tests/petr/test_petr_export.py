"""PETR's and PETRv2's contracts: proven as streams; faults in graphs and runtime are not."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from mmcv import Config

import petr_golden as golden
import toy_drive_goldens
import toy_frames
from eager_files import eager_row, names_of
from marking import in_suite
from mm2onnx_driving.petr import runtime
from mm2onnx_driving.petr.family import SWEEPS, PetrFamily, PetrV2Family, start_gap_s
from mmdeploy_ext.base.errors import ConfigError, InferenceError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from planting import replaced
from proofs import drive_row, prove

TOYS = dict(petr=toy_frames.PETR, petrv2=toy_frames.PETRV2)
ENGINE = dict(engine='OnnxRuntimeBackend')


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    return {name: toy.load(tmp_path_factory.mktemp(name)) for name, toy in TOYS.items()}


@pytest.fixture(scope='module')
def exports(toys, tmp_path_factory):
    """(toy, contract) -> paths of its files, exported when one is asked for."""
    made = {}

    def export(name, contract='portable'):
        if (name, contract) not in made:
            folder = tmp_path_factory.mktemp(f'{name}_{contract}')
            made[name, contract] = TOYS[name].export(toys[name], folder, contract=contract)
        return made[name, contract]

    return export


def drive(detector, frames=3):
    return synthetic_drive(frames, detector.rule, scenes=2)


@pytest.mark.parametrize('name', TOYS)
def test_the_toys_give_the_recorded_numbers(toys, name):
    toy_drive_goldens.check(toys[name])


CONTRACTS = [(name, contract) for name in TOYS for contract in ('portable', 'dl4agx')]


@pytest.mark.parametrize(('name', 'contract'), in_suite(CONTRACTS, ('petrv2', 'portable')))
def test_the_files_are_proven_as_a_stream(toys, exports, name, contract):
    verdict = prove(toys[name], exports(name, contract), drive(toys[name]))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 400


@pytest.mark.parametrize(('name', 'version'), [('petr', 'PETRv1'), ('petrv2', 'PETRv2')])
def test_the_loop_of_dl4agx_gives_the_results_of_pytorch(toys, tmp_path, name, version):
    row, specs = eager_row(toys[name], tmp_path, drive(toys[name]), contract='dl4agx')
    assert row.passed and row.matched >= 100, row.reasons
    content = json.loads((golden.IN_REPOSITORY / 'contract.json').read_text())['graphs']
    for file in (file for file in content if file.startswith(version)):
        found = names_of(specs[file.removesuffix('.onnx')])
        for actual, side in zip(found, ('inputs', 'outputs'), strict=True):
            assert dict(actual) == {entry['name']: len(entry['shape']) for entry in content[file][side]}


@pytest.mark.parametrize(('family', 'pictures', 'cameras'), [(PetrFamily(), 8, 8), (PetrV2Family(), 14, 7)])
def test_a_sample_keeps_all_cameras_of_its_rig(family, pictures, cameras):
    matrices = np.stack([np.eye(4) * number for number in range(1, pictures + 1)])
    meta = dict(lidar2img=[*matrices], sample_idx='a')
    frame = family.data.frame(dict(img=[torch.zeros(1, pictures, 3, 2, 2)], img_metas=[[meta]]))
    assert frame.images.shape == (cameras, 3, 2, 2)
    assert (frame.lidar2img == matrices[:cameras]).all() and len(frame.intrinsics) == cameras


def test_the_first_gap_is_the_middle_of_the_configs_range_of_sweeps():
    for settings, sweeps in (({}, 15), (dict(sweep_range=[4, 10]), 7)):
        step = dict(settings, type=SWEEPS)
        cfg = Config(dict(data=dict(test=dict(pipeline=[step]))), cfg_text='x', filename='toy.py')
        assert start_gap_s(cfg) == pytest.approx(sweeps * 0.083)
    cfg.data.test.pipeline[0].sweeps_num = 1
    PetrV2Family().check_further(cfg)
    with pytest.raises(ConfigError, match='sweeps_num=1, expected 0'):
        PetrFamily().check_further(cfg)


def test_a_stale_embedding_gives_no_result(toys, exports, monkeypatch):
    detector = toys['petrv2']
    runner = detector.family.runner(exports('petrv2'), ENGINE)
    first, second = drive(detector, 2)
    moved = np.array(second.lidar2img)
    moved[3, 0] *= 1.01
    runner.step(first)
    embedded = runner.run_for_rig(runtime.EMBEDDING, dict(img2lidar=runtime.inverse_of(first.lidar2img)))
    with monkeypatch.context() as stale:
        stale.setattr(runner, 'run_for_rig', lambda name, feeds: embedded)
        with pytest.raises(InferenceError, match='NaN'):
            runner.step(dataclasses.replace(second, lidar2img=moved))
    runner.step(dataclasses.replace(second, lidar2img=moved))


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


RUNTIME = 'mm2onnx_driving.petr.runtime'
FAULTS = {
    'two cameras exchanged': (
        f'{RUNTIME}:inverse_of',
        lambda original: lambda lidar2img: original(np.asarray(lidar2img)[[1, 0, 2, 3, 4, 5]]),
    ),
    'the motion of the car left out': (
        f'{RUNTIME}:relative_motion',
        lambda original: lambda last, present: np.eye(4),
    ),
    'the first frame keeps the features of the last scene': (
        'mmdeploy_ext.runtime.streams:StreamRuntime.begins_scene',
        lambda original: lambda self, last, *moment: original(self, last, *moment) and last is None,
    ),
}
"""What is wrong -> place of a public name, and the change."""


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_our_own_code_is_not_proven(toys, exports, fault):
    with replaced(*FAULTS[fault]):
        frames = drive(toys['petrv2'])
        assert not drive_row(toys['petrv2'], exports('petrv2'), frames).passed


def test_heads_of_other_models_belong_to_no_family_of_petr(toys):
    cfg = toys['petr'].cfg
    assert find_family(cfg).name == 'petr' and find_family(toys['petrv2'].cfg).name == 'petrv2'
    wrong = copy.deepcopy(toys['petrv2'].cfg)
    wrong.model.pts_bbox_head.with_fpe = False
    with pytest.raises(ConfigError, match='with_fpe=False'):
        toys['petrv2'].family.build(wrong)
