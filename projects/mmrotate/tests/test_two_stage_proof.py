"""Whole proofs of small two-stage detectors of mmrotate: right files, and files with planted faults."""

import functools

import pytest
from test_two_stage_faults import angle_sign, no_class_offset, sampling_grid, sides_exchanged
from two_stage_toys import KINDS, toy

from mmdeploy_ext.engines.registry import DEFAULT
from mmdeploy_ext.proving.inputs.samples import read_images
from mmdeploy_ext.synthetic.seeded import seeded_model
from mmdeploy_ext.zoo.config_proof import Settings, prove_config
from mmdeploy_ext.zoo.configs import Config

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
SIZE = (192, 256)


@functools.cache
def settings(kind):
    picture = read_images(['demo/toy.jpg'], 1)[0]
    return Settings(SIZE, picture, seeded_model, DEFAULT.runner_options(threads=1), (kind,))


def outcome(folder, kind, version='le90', export='fixed'):
    path = folder / f'{kind}_{version}.py'
    toy(kind, version).dump(str(path))
    record = prove_config(Config(path.name, str(path), {}), settings(export), None, lambda record: None)
    return getattr(record, export)


@pytest.mark.parametrize('export', ['fixed', 'dynamic'])
@pytest.mark.parametrize('version', ['le90', 'le135', 'oc'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_file_is_proven(tmp_path, kind, version, export):
    proof = outcome(tmp_path, kind, version, export)
    assert proof.proven, proof.why
    assert proof.matched > 50


@pytest.mark.parametrize('fault', [angle_sign, sampling_grid, no_class_offset, sides_exchanged])
def test_a_file_with_a_fault_is_not_proven(tmp_path, monkeypatch, fault):
    """The fault is in the code that exports, so that a fresh export equals the file."""
    fault(monkeypatch)
    proof = outcome(tmp_path, 'oriented_rcnn')
    assert not proof.proven
    assert proof.reason == 'not proven' and 'images differ' in proof.why
