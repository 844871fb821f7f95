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


def test_a_good_file_keeps_the_contract(sparse, tmp_path, capsys):
    target = tmp_path / 'found.json'
    assert check([sparse, '--json', str(target)]) == 0
    assert 'CONTRACT KEPT' in capsys.readouterr().out
    content = json.loads(target.read_text())
    (wide,) = content.pop('violations')
    assert content == dict(file=sparse, kept=True, nodes=40)
    assert (wide['node'], wide['rule'], wide['severity']) == ('conv0', 'grid-size', 'warning')


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
    assert 'is not a sparse graph of libspconv' in capsys.readouterr().err
