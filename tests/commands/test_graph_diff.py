"""`graph.py diff`: exit statuses, what it prints and writes, and what it refuses."""

import json
import re
from pathlib import Path

import onnx
import pytest

import toy_faults
from mmdeploy_ext.cli.graph_app import main

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPOSITORY / 'demo/checkpoints/atss_toy.pth')


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> str:
    import toy_atss

    path = tmp_path_factory.mktemp('diff') / 'raw.onnx'
    return toy_atss.export_toy(toy_atss.load_toy(), path, form='raw', dynamic=False, height=128, width=160)


@pytest.fixture(scope='module')
def broken(exported) -> str:
    model, _ = toy_faults.plant(onnx.load(exported), 'atss', 'weight', None)
    path = exported.replace('raw.onnx', 'broken.onnx')
    onnx.save(model, path)
    return path


@pytest.mark.matrix
def test_a_right_file_is_exit_status_zero(exported, capsys):
    assert main(['diff', CONFIG, CHECKPOINT, exported]) == 0
    assert 'EQUAL' in capsys.readouterr().out


def test_a_wrong_file_is_exit_status_one_with_node_module_json_and_page(exported, broken, tmp_path, capsys):
    target, report = tmp_path / 'found.json', tmp_path / 'report'
    command = ['diff', CONFIG, CHECKPOINT, broken, '--json', str(target), '--report', str(report)]
    assert main(command) == 1
    out = capsys.readouterr().out
    node = toy_faults.NODES['atss']['weight']
    assert 'DIFFERS' in out and node in out and 'backbone.layer2.0.conv2' in out
    content = json.loads(target.read_text())
    assert not content['equal'] and content['first']['node'] == node
    assert json.loads((report / 'diff.json').read_text()) == content
    page = (report / 'report.html').read_text()
    assert not re.search(r'(src|href)="?http', page)
    embedded = re.search(r'<script type="application/json" id="comparison">(.*?)</script>', page, re.S)
    assert json.loads(embedded[1]) == content
    assert page.count('class="wrong"') == 2  # one in the plot, one in the legend
    assert f'<code>{node}</code>' in page


OWN_CODER = """from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder


@BBOX_CODERS.register_module()
class ShiftedCoder(DeltaXYWHBBoxCoder):
    def decode(self, bboxes, *args, **settings):
        return super().decode(bboxes + 3, *args, **settings)
"""


def test_a_file_that_does_not_decode_as_the_users_own_coder_differs(exported, tmp_path, capsys):
    (tmp_path / 'shifted_coder.py').write_text(OWN_CODER)
    config = tmp_path / 'own.py'
    config.write_text(
        f"_base_ = ['{CONFIG}']\ncustom_imports = dict(imports=['shifted_coder'])\n"
        "model = dict(bbox_head=dict(bbox_coder=dict(type='ShiftedCoder')))\n"
    )
    assert main(['diff', str(config), CHECKPOINT, exported, '--no-fresh']) == 1
    assert 'DIFFERS' in capsys.readouterr().out
