"""`graph.py`: what it prints and writes, and its exit statuses."""

import json
from pathlib import Path

import onnx
import pytest

from mmdeploy_ext.cli.check_app import main as check
from scn_files import golden_model, node_of, set_attribute

REPOSITORY = Path(__file__).resolve().parents[2]
DENSE = REPOSITORY / 'demo' / 'atss_toy.onnx'


@pytest.fixture(scope='module')
def sparse(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('scn') / 'lidar.backbone.xyz.onnx'
    onnx.save_model(golden_model('bevfusion.int8.xyz'), path)
    return str(path)


@pytest.fixture(scope='module')
def unfused(tmp_path_factory) -> str:
    model = golden_model('bevfusion.plain.xyz')
    del node_of(model, 'conv4').input[2:]
    set_attribute(node_of(model, 'conv9'), 'output_bound', 150000)
    path = tmp_path_factory.mktemp('scn') / 'unfused.onnx'
    onnx.save_model(model, path)
    return str(path)


def test_a_good_file_keeps_the_contract(sparse, tmp_path, capsys):
    target = tmp_path / 'found.json'
    assert check([sparse, '--json', str(target)]) == 0
    assert 'CONTRACT KEPT' in capsys.readouterr().out
    content = json.loads(target.read_text())
    (wide,) = content.pop('violations')
    assert content == dict(file=sparse, kept=True, nodes=40)
    assert (wide['node'], wide['rule'], wide['severity']) == ('conv0', 'grid-size', 'warning')


def test_a_broken_file_is_exit_status_one_and_names_the_node(unfused, tmp_path, capsys):
    target = tmp_path / 'found.json'
    assert check([unfused, '--json', str(target)]) == 1
    out = capsys.readouterr().out
    assert 'CONTRACT BROKEN' in out and 'conv4' in out and 'missing-bias' in out
    content = json.loads(target.read_text())
    assert not content['kept']
    assert [(row['node'], row['rule'], row['severity']) for row in content['violations']] == [
        ('conv0', 'grid-size', 'warning'),
        ('conv4', 'missing-bias', 'error'),
        ('conv9', 'output-bound', 'warning'),
    ]


def test_strict_fails_on_warnings_and_max_voxels_on_the_bound(sparse, tmp_path):
    model = onnx.load(sparse)
    set_attribute(node_of(model, 'conv9'), 'output_bound', 150000)
    onnx.save_model(model, tmp_path / 'warned.onnx')
    warned = str(tmp_path / 'warned.onnx')
    assert check([warned]) == 0
    assert check([warned, '--strict']) == 1
    assert check([sparse, '--max-voxels', '200000']) == 0
    assert check([sparse, '--max-voxels', '300000']) == 1


def test_an_ordinary_file_is_told_from_a_broken_one(capsys):
    assert check([str(DENSE)]) == 2
    assert 'is no sparse graph of libspconv' in capsys.readouterr().err
