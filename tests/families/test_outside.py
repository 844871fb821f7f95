"""A family of a package of one's own: `outside_package`, which docs/own-family.md shows."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import mmdeploy_ext
from dev.seeded.weights import write_seeded
from mmdeploy_ext import register_family
from mmdeploy_ext.base.errors import ConfigError, InferenceError
from mmdeploy_ext.cli import command, export_app
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec import registry
from mmdeploy_ext.spec.facts import Facts
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.options import Option
from mmdeploy_ext.spec.tensors import TensorSpec

REPOSITORY = Path(__file__).resolve().parents[2]
OUTSIDE = REPOSITORY / 'tests/families/outside_package'
NARROW = f"""_base_ = ['{OUTSIDE}/config.py']
model = dict(backbone=dict(base_channels=16, stem_channels=16), bbox_head=dict(in_channels=32))
"""
PICTURE = str(REPOSITORY / 'demo/toy.jpg')
PADDED = 'mmdeploy_ext.families.common.runtime.padded_results'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return the status of an export of the family that a config registers, and the folder of its files."""
    folder = tmp_path_factory.mktemp('gauges')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OUTSIDE))
        patch.setattr(registry, '_REGISTERED', dict(registry.registered()))
        config = folder / 'config.py'
        config.write_text(NARROW)
        write_seeded(str(config), folder / 'gauges.pth')
        option = Option('panel', 'round', 'kind of panel', ('round', 'square'))
        register_family(
            'gauges', 'gauges.family:GaugeFamily', options=(option,), runtime=PADDED, claims=('GaugeHead',)
        )
        words = [config, folder / 'gauges.pth', '--output-file', folder / 'm.onnx', '--panel', 'square']
        words += ['--verify', '--json', folder / 'verdict.json', '--report', folder / 'report']
        yield export_app.main([*map(str, words)]), folder
    FAMILIES.pop('gauges')
    for name in [name for name in sys.modules if name.split('.')[0] == 'gauges']:
        del sys.modules[name]


def test_the_family_of_the_page_is_proven_with_its_option(exported):
    status, folder = exported
    verdict = json.loads((folder / 'verdict.json').read_text())
    assert (status, verdict['verdict'], verdict['subject']['task']) == (0, 'proven', 'bbox2d')
    metadata = read_metadata(str(folder / 'm.onnx'))
    assert (metadata.family, metadata.form, metadata.options['panel']) == ('gauges', 'full', 'square')
    assert (folder / 'report/detections.png').is_file()


def test_the_same_by_functions(exported):
    _, folder = exported
    config, checkpoint, file = folder / 'config.py', folder / 'gauges.pth', folder / 'm.onnx'
    assert not mmdeploy_ext.prove(config, checkpoint, file, asked=dict(panel='round')).passed
    made = mmdeploy_ext.export(config, checkpoint, folder / 'other.onnx', height=64, width=64)
    assert made.files == [str(folder / 'other.onnx')] and made.options.panel == 'round'
    with mmdeploy_ext.open_model(made.files[0]) as model:
        assert len(model(read_image(PICTURE))) == 6


def test_an_output_that_no_comparison_reads_is_an_error_of_the_spec(exported, monkeypatch):
    class WithDepth(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *inputs):
            dets, labels = self.network(*inputs)
            return dets, labels, dets[..., 4] * 7

    _, folder = exported
    family = FAMILIES['gauges']
    usual_spec, usual_stages = family.spec, family.stages

    def spec(model, options):
        spec = usual_spec(model, options)
        axes = spec.outputs[1].axes
        depth = TensorSpec('depth', 'float32', axes, 'm', compare='detections')
        return dataclasses.replace(spec, outputs=(*spec.outputs, depth))

    def stages(model, options):
        (stage,) = usual_stages(model, options)
        return [dataclasses.replace(stage, module=WithDepth(stage.module), outputs=(*stage.outputs, 'depth'))]

    monkeypatch.setattr(family, 'spec', spec)
    monkeypatch.setattr(family, 'stages', stages)
    config, checkpoint, file = folder / 'config.py', folder / 'gauges.pth', folder / 'depth.onnx'
    mmdeploy_ext.export(config, checkpoint, file, height=64, width=64)
    failures = mmdeploy_ext.prove(config, checkpoint, file).failures
    assert len(failures) == 1 and 'output depth' in failures[0], failures


def test_an_input_that_nothing_feeds_is_named(exported, monkeypatch):
    _, folder = exported
    feeds = FAMILIES['gauges'].feeds
    monkeypatch.setattr(FAMILIES['gauges'], 'feeds', lambda images, rescale: feeds(images, False))
    files = folder / 'config.py', folder / 'gauges.pth', folder / 'unfed.onnx'
    with pytest.raises(ConfigError, match=r"GaugeFamily\.spec has the input 'scale_factor'"):
        mmdeploy_ext.export(*files, height=64, width=64)


def test_facts_that_are_not_registered_are_named(exported, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class GaugeFacts(Facts):
        stride: int

    _, folder = exported
    config = folder / 'config.py'
    monkeypatch.setattr(FAMILIES['gauges'], 'facts', lambda model: GaugeFacts(8), raising=False)
    with pytest.raises(ConfigError, match=r"'gauges'.*facts='.*GaugeFacts'"):
        mmdeploy_ext.export(config, folder / 'gauges.pth', folder / 'facts.onnx', height=64, width=64)


def test_an_error_of_an_authors_runtime_names_its_line(registered, monkeypatch):
    def detections(metadata, outputs, feeds):
        return np.zeros(0).max()

    runtime = types.ModuleType(__name__)
    runtime.detections = detections
    register_family('faulty', 'faulty.family:Faulty', runtime=__name__)
    monkeypatch.setitem(sys.modules, __name__, runtime)
    with pytest.raises(InferenceError, match=r'test_outside\.py:\d+, in detections: ValueError'):
        results_of('faulty', None, {}, {})


def test_the_same_file_is_drawn_by_its_runtime(exported):
    _, folder = exported
    words = ['run', folder / 'm.onnx', PICTURE, '--out', folder / 'drawn', '--json', folder / 'c.json']
    assert command.main([*map(str, words)]) == 0
    (image,) = json.loads((folder / 'c.json').read_text())['images']
    assert image['detections']


@pytest.fixture
def registered(monkeypatch):
    registry.registered()
    monkeypatch.setattr(registry, '_REGISTERED', dict(registry._REGISTERED))


def test_a_name_is_taken_once(registered):
    register_family('twice', 'a:A')
    register_family('twice', 'a:A')  # as after a reload
    with pytest.raises(ConfigError, match=r"'twice'.*'b:B'"):
        register_family('twice', 'b:B')
    with pytest.raises(ConfigError, match=r"'Upper'"):
        register_family('Upper', 'a:A')
    with pytest.raises(ConfigError, match=r"expected 'module:Class'"):
        register_family('right', 'a.A')
