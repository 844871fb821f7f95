"""A repository with a copy of mmdet3d: its own code is the reference, in a process of its own."""

import pytest

import toy_bevfusion
import toy_bevfusion_fork
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.proving.provenance import settings_check
from proofs import prove
from verdicts import cases_of, preprocessing_of


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    folder = toy_bevfusion_fork.repository(tmp_path_factory.mktemp('repository'))
    return folder, *toy_bevfusion_fork.configured(folder)


@pytest.fixture(scope='module')
def toy(repository, tmp_path_factory):
    _, config, checkpoint = repository
    detector = detectors.load(config, checkpoint)
    return detector, toy_bevfusion.export(detector, tmp_path_factory.mktemp('files'))


def proof_of(toy, root=None):
    """Return the verdict on the files of the toy; `root` is of a repository whose code has changed."""
    detector, paths = toy
    if root is not None:
        detector = detectors.load(detector.config, detector.checkpoint)
        detector.model.fork.root = str(root)
    frames = list(detector.family.data.generated_sweeps(detector.rule, 1))
    return prove(detector, paths, frames)


@pytest.mark.matrix
def test_the_files_equal_what_the_code_of_the_repository_gives(toy, repository):
    verdict = proof_of(toy)
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 30
    assert preprocessing_of(verdict).passed and preprocessing_of(verdict).samples == 2
    assert str(repository[0]) in ' '.join(verdict.notes)


@pytest.mark.matrix
def test_a_changed_line_of_the_repository_is_not_proven(toy, tmp_path):
    verdict = proof_of(toy, toy_bevfusion_fork.repository(tmp_path, changed=True))
    assert not verdict.passed
    assert any(not case.passed for case in cases_of(verdict))


def test_the_config_is_put_into_the_terms_of_the_family(repository):
    cfg = load_config(repository[1])
    family = find_family(cfg)
    assert cfg.model.encoders.lidar.backbone.type == 'BEVFusionSparseEncoder'
    assert [step['type'] for step in cfg.data.test.pipeline] == [
        'LoadPointsFromFile', 'LoadPointsFromMultiSweeps', 'PointsRangeFilter', 'DefaultFormatBundle3D',
        'Collect3D',
    ]  # fmt: skip
    assert cfg.data.test.pipeline[0]['use_dim'] == [0, 1, 2, 3, 4]
    rule = family.preprocess_rule(cfg)
    assert (rule.sweeps, rule.load_dim) == (2, 5)
    assert cfg.fork.root == str(repository[0])


def test_overrides_of_a_file_are_those_of_the_config_as_it_was_read(repository):
    step = 'data.test.pipeline.6.point_cloud_range'
    limits = [-9.0, -9.0, -5.0, 9.0, 9.0, 3.0]
    for overrides, passed in (({}, False), ({step: limits}, True)):
        cfg = load_config(repository[1], overrides)
        find_family(cfg)
        assert len(cfg.data.test.pipeline) == 5
        assert settings_check(cfg, {step: limits}).passed == passed


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'model.encoders.lidar.voxelize_reduce': False}, 'voxelize_reduce=False'),
        ({'data.test.pipeline.5.is_train': True}, 'is_train=True'),
        ({'data.test.pipeline.1.reduce_beams': 16}, 'reduce_beams=16'),
    ],
)
def test_what_no_file_does_is_refused_by_its_key(repository, options, words):
    with pytest.raises(ConfigError, match=words):
        find_family(load_config(repository[1], options))
