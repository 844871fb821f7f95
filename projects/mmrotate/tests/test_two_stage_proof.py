"""Whole proofs of two-stage detectors of mmrotate: right files, and files with planted faults."""

import functools

import pytest
from test_two_stage_faults import (
    angle_sign,
    no_class_offset,
    other_version,
    sampling_grid,
    sides_exchanged,
    upright_iou,
    wrap_off,
)
from two_stage_toys import CONFIG, KINDS, toy

import mmdeploy_ext
from dev.seeded.weights import seeded_model
from dev.zoo.config_proof import Settings, prove_config
from dev.zoo.configs import Config
from mmdeploy_ext.engines.registry import DEFAULT
from mmdeploy_ext.proving.inputs import read_images

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
SIZE = (192, 256)
CHECKPOINT = 'projects/mmrotate/checkpoints/oriented_rcnn_toy.pth'


@functools.cache
def settings(export):
    picture = read_images(['demo/toy.jpg'], 1)[0]
    return Settings(SIZE, picture, seeded_model, DEFAULT.runner_options(threads=1), (export,))


def outcome(folder, kind, version='le90', export='fixed'):
    path = folder / f'{kind}_{version}.py'
    toy(kind, version).dump(str(path))
    record = prove_config(Config(path.name, str(path), {}), settings(export), lambda record: None)
    return getattr(record, export)


@pytest.mark.parametrize('export', ['fixed', 'dynamic'])
@pytest.mark.parametrize('version', ['le90', 'le135', 'oc'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_file_is_proven(tmp_path, kind, version, export):
    proof = outcome(tmp_path, kind, version, export)
    assert proof.proven, proof.why
    assert proof.matched > 50


FAULTS = (
    other_version,
    wrap_off,
    sides_exchanged,
    upright_iou,
    no_class_offset,
    angle_sign,
    sampling_grid,
)


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_a_file_of_the_trained_toy_with_a_fault_is_not_proven(tmp_path, monkeypatch, fault):
    """The fault is in the code that exports, also in the fresh export of the proof."""
    fault(monkeypatch)
    verdict = mmdeploy_ext.export(CONFIG, CHECKPOINT, tmp_path / 'model.onnx').prove()
    assert {finding.level for finding in verdict.findings if not finding.passed} == {'outputs'}
