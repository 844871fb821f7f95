"""VAD for tensorrt_vad: the node takes the folder, and its loop gives PyTorch's results."""

import json
from pathlib import Path

import pytest
import yaml

from eager_files import eager_row
from mm2onnx_driving.autoware.check import read_manifest, sizes_of
from mm2onnx_driving.autoware.contract import published
from mm2onnx_driving.autoware.nodes import BEVDET, BEVFORMER, CENTERPOINT, VAD
from mm2onnx_driving.folder_rules import expected_shape
from mm2onnx_driving.vad.autoware import VadFiles
from mm2onnx_driving.vad.family import VadFamily
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.violations import errors
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
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
    assert [one for one in errors(violations) if one.rule != 'path'] == []
    sizes = sizes_of(VAD, values)
    for file in VAD.files:
        given = {one.name: one.axes for one in (*specs[file.name].inputs, *specs[file.name].outputs)}
        bound = {one.name: expected_shape(one.axes, sizes) for one in (*file.inputs, *file.outputs)}
        assert given == bound


def read_content(path):
    content = yaml.safe_load(path.read_text())
    return content['/**']['ros__parameters'] if path.suffix == '.yaml' else content


def test_classes_have_the_nodes_words(detector):
    text = VadFiles(detector.family).companions(detector.model)['vad.param.yaml']
    names = yaml.safe_load(text)['/**']['ros__parameters']['class_mapping']
    known = [name for name in names if name in VAD.classes]
    assert names[:2] == ['CAR', 'TRUCK'] and len(known) == 6 and len(names) == len(detector.model.CLASSES)


@pytest.mark.parametrize(
    ('words', 'name', 'word'),
    [
        (VAD.classes, 'motorcycle', 'MOTORCYCLE'),
        (CENTERPOINT.classes, 'motorcycle', 'MOTORBIKE'),
        (BEVDET.classes, 'Car', 'car'),
        (BEVFORMER.classes, 'CONSTRUCTION_VEHICLE', 'construction_vehicle'),
        (BEVDET.classes, 'barrier', 'barrier'),
        (VAD.classes, 'barrier', 'BARRIER'),
    ],
)
def test_each_node_has_its_own_words(words, name, word):
    assert published(words, [name]) == [word]


@pytest.mark.parametrize(
    ('file', 'key', 'value'),
    [
        ('vad.param.json', 'network_architecture.map.num_queries', 7.5),
        ('vad.param.json', 'major_version', 1),
        ('vad.param.json', 'class_definitions.map_classes', ['divider']),
        ('vad.param.yaml', 'class_mapping', ['CAR']),
        ('vad.param.yaml', 'class_mapping', ['car', *['UNKNOWN'] * 9]),
    ],
)
def test_parameters_that_the_node_refuses_are_named(detector, tmp_path, file, key, value):
    for name, text in VadFiles(detector.family).companions(detector.model).items():
        (tmp_path / name).write_text(text)
    content = read_content(tmp_path / file)
    *sections, last = key.split('.')
    section = content
    for name in sections:
        section = section[name]
    section[last] = value
    if file.endswith('yaml'):
        content = {'/**': {'ros__parameters': content}}
    (tmp_path / file).write_text(json.dumps(content))
    violations = [one for one in read_manifest(VAD, tmp_path)[1] if one.rule != 'path']
    keys = {one.attribute for one in errors(violations)}
    assert keys == {dict(map_classes='model_params.map_confidence_thresholds').get(last, key)}


def test_a_model_of_other_layers_is_refused():
    with pytest.raises(ConfigError, match='num_layers'):
        VadFiles(VadFamily()).check(load_config(shallow.config))


@pytest.mark.matrix
def test_the_files_are_proven_and_the_node_takes_them(detector, paths, capsys):
    verdict = prove_samples(detector, paths, drive(detector))
    assert verdict.passed, verdict.failures
    assert main([str(Path(paths[0]).parent)]) == 0, capsys.readouterr().out
