"""Full-size StreamPETR R50 over real key frames and long drives (make test-matrix)."""

import dataclasses

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import proofs
import real_nuscenes
import streampetr_golden as seeded
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.bench.kinds.sequence import proof_samples
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.proving.drive_run import FULL_DRIVE, SHORT_DRIVE
from verdicts import sequence_of

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
CONFIG = 'projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights by the rule of the goldens."""
    cfg = load_config(CONFIG)
    state = find_family(cfg).build(cfg).state_dict()
    path = tmp_path_factory.mktemp('weights') / 'seeded.pth'
    shapes = {key: list(value.shape) for key, value in state.items()}
    torch.save(dict(state_dict=seeded.seeded_state_dict(shapes)), path)
    return str(path)


@pytest.fixture(scope='module')
def exported(checkpoint, tmp_path_factory):
    """Contract -> its files."""
    detector, folder = detectors.load(CONFIG, checkpoint), tmp_path_factory.mktemp('files')
    choose, targets = FAMILIES['streampetr'].choose, dict(deploy='deploy', fork='fork.onnx')
    return {
        contract: export_files(detector, choose(contract=contract), str(folder / name))[0]
        for contract, name in targets.items()
    }


def prove(checkpoint, paths, infos, bars):
    """Prove files on the frames of an info file, by the config's own data set and pipeline."""
    settings = {'data.test.ann_file': str(infos), 'data.test.data_root': f'{infos.parent}/'}
    detector = detectors.load(CONFIG, checkpoint, settings)
    frames, title = proof_samples(detector, bars.frames)
    assert title == f'{bars.frames} of {bars.frames} frames of data.test'
    verdict = proofs.prove(detector, paths, frames, bars=bars)
    for row in sequence_of(verdict):
        print(row.title, row.matched, row.reference, row.worst_distance, row.worst_score, row.ties)
    return verdict


@pytest.mark.parametrize('contract', ['deploy', 'fork'])
def test_four_real_key_frames_are_proven(contract, checkpoint, exported, tmp_path):
    bars = dataclasses.replace(SHORT_DRIVE, frames=4)
    infos = real_nuscenes.scene_0103(tmp_path)
    verdict = prove(checkpoint, exported[contract], infos, bars)
    assert verdict.proven, verdict.failures
    assert all(row.frames == 4 and row.matched > 40 for row in sequence_of(verdict))


@pytest.mark.parametrize('contract', ['deploy', 'fork'])
def test_a_hundred_frames_of_the_full_size_model_are_proven(contract, checkpoint, exported):
    detector = detectors.load(CONFIG, checkpoint)
    drive = synthetic_drive(FULL_DRIVE.frames, detector.rule)
    verdict = proofs.prove(detector, exported[contract], drive, length=FULL_DRIVE)
    assert verdict.proven, verdict.failures
    teacher, free = sequence_of(verdict)
    assert (free.frames, free.resets, free.time_jumps) == (100, 2, 1) and free.match_rate >= 0.999
    assert teacher.passed
