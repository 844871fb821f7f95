"""VAD for tensorrt_vad: the node takes the folder, and its loop gives PyTorch's results."""

import json
from pathlib import Path

import pytest

from eager_files import eager_row
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.config.config import load_config
from mmdeploy_ext.synthetic.drive import synthetic_drive
from mmdeploy_ext.systems.vad.family import VadFamily
from mmdeploy_ext.systems.vad.targets.autoware_export import VadFiles
from mmdeploy_ext.targets.autoware.check import read_manifest, sizes_of
from mmdeploy_ext.targets.autoware.nodes import VAD
from mmdeploy_ext.targets.folder_rules import expected_shape
from mmdeploy_ext.util.errors import ConfigError
from proofs import prove_samples
from toy_frames import VAD as shallow
from toy_frames import VAD_DEEP as toy

detector, paths = toy.fixtures(contract='autoware')


def drive(detector, frames=4):
    return synthetic_drive(frames, detector.rule, scenes=2)


def test_the_nodes_loop_gives_the_results_of_pytorch(detector, tmp_path):
    row, specs = eager_row(detector, tmp_path, drive(detector), contract='autoware')
    assert row.passed and row.matched >= 100, row.reasons
    values, violations = read_manifest(VAD, tmp_path)
    assert [one for one in violations if one.rule != 'path'] == []
    sizes = sizes_of(VAD, values)
    for file in VAD.files:
        given = {one.name: one.axes for one in (*specs[file.name].inputs, *specs[file.name].outputs)}
        bound = {one.name: expected_shape(one.axes, sizes) for one in (*file.inputs, *file.outputs)}
        assert given == bound


@pytest.mark.parametrize(
    ('file', 'key', 'value'),
    [
        ('vad.param.json', 'network_architecture.map.num_queries', 7.5),
        ('vad.param.json', 'major_version', 1),
        ('vad.param.json', 'class_definitions.map_classes', ['divider']),
    ],
)
def test_parameters_that_the_node_refuses_are_named(detector, tmp_path, file, key, value):
    for name, text in VadFiles(detector.family).companions(detector.model).items():
        (tmp_path / name).write_text(text)
    content = json.loads((tmp_path / file).read_text())
    *sections, last = key.split('.')
    section = content
    for name in sections:
        section = section[name]
    section[last] = value
    (tmp_path / file).write_text(json.dumps(content))
    keys = {one.attribute for one in read_manifest(VAD, tmp_path)[1] if one.rule != 'path'}
    assert keys == {dict(map_classes='model_params.map_confidence_thresholds').get(last, key)}


def test_a_model_of_other_layers_is_refused():
    with pytest.raises(ConfigError, match='num_layers'):
        VadFiles(VadFamily()).check(load_config(shallow.config))


@pytest.mark.matrix
def test_the_files_are_proven_and_the_node_takes_them(detector, paths, capsys):
    verdict = prove_samples(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert main([str(Path(paths[0]).parent)]) == 0, capsys.readouterr().out
