"""`graph.py diff`: exit statuses, what it prints and writes, and what it refuses."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

import padded_first
import toy_faults
from mmdeploy_ext.cli import benchmark_app, export_app
from mmdeploy_ext.cli.graph_app import main
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPOSITORY / 'demo/checkpoints/atss_toy.pth')


def register() -> None:
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


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


def test_a_right_file_is_exit_status_zero(exported, capsys):
    assert main(['diff', CONFIG, CHECKPOINT, exported]) == 0
    assert 'EQUAL' in capsys.readouterr().out


def test_padding_before_the_normalisation_is_that_of_the_mean_in_the_file(tmp_path, monkeypatch):
    """Pictures get the file's own mean; the benchmark prepares them likewise."""
    model, path = [padded_first.write_config(tmp_path), CHECKPOINT], str(tmp_path / 'm.onnx')
    words = ['--output-file', path, '--shape', '128', '160', '--postprocess', 'raw']
    assert export_app.main([*model, *words, *padded_first.OWN_MEAN]) == 0
    expected, seen = read_metadata(path).preprocess, []

    def stopped(deployment, *_, **__):
        seen.append(deployment.rule)
        raise UsageError('far enough')

    monkeypatch.setattr('mmdeploy_ext.proving.difference.locate.first_difference', stopped)
    assert main(['diff', *model, path]) != 0
    monkeypatch.setattr(
        'mmdeploy_ext.benchmark.images.resolve',
        lambda options, model, rule: stopped(types.SimpleNamespace(rule=rule)),
    )
    assert benchmark_app.main([*model, '--onnx', path]) != 0
    assert [rule.mean for rule in seen] == [(11.0, 12.0, 13.0)] * 2
    assert [rule.pad_val for rule in seen] == [expected.pad_val] * 2


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


def test_a_file_that_lacks_an_output_of_its_contract_differs_from_its_checkpoint(exported, tmp_path, capsys):
    model = onnx.load(exported)
    gone = model.graph.output.pop().name
    onnx.save(model, tmp_path / 'fewer.onnx')
    assert main(['diff', CONFIG, CHECKPOINT, str(tmp_path / 'fewer.onnx'), '--no-fresh']) == 1
    assert f'DIFFERS output {gone} is missing in {tmp_path / "fewer.onnx"}; ' in capsys.readouterr().out


def test_two_files_need_no_torch(exported, broken):
    code = (
        'import sys; sys.modules["torch"] = None; from mmdeploy_ext.cli.graph_app import main; '
        f'sys.exit(main(["diff", {exported!r}, {broken!r}]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert 'DIFFERS' in done.stdout


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ([], 'got 1'),
        (['b.onnx', '--rtol', '0'], '--rtol 0.0'),
        (['b.onnx', '--no-fresh'], '--no-fresh goes with CONFIG'),
        (['b.onnx', '--seed', '1', '--input', 'x.npz'], '--seed 1'),
        (['b.onnx', 'c.onnx', '--seed', '1'], '--seed 1 goes with two files'),
        (['b.onnx'], 'no such ONNX file'),
    ],
)
def test_bad_usage_is_exit_status_two(extra, message, capsys):
    assert main(['diff', 'a.onnx', *extra]) == 2
    assert message in capsys.readouterr().err


def test_inputs_that_do_not_fit_are_named_with_the_option(tmp_path, capsys):
    model = str(REPOSITORY / 'demo/atss_toy.onnx')
    np.savez(tmp_path / 'x.npz', image=np.zeros(1))
    assert main(['diff', model, model, '--input', str(tmp_path / 'x.npz')]) == 2
    said = capsys.readouterr().err
    assert 'x.npz: no values for the inputs input of the graph; got image' in said and '--input' in said


def test_a_file_that_is_not_ours_is_refused_against_a_checkpoint(exported, tmp_path, capsys):
    model = onnx.load(exported)
    model.ClearField('metadata_props')
    onnx.save(model, tmp_path / 'foreign.onnx')
    assert main(['diff', CONFIG, CHECKPOINT, str(tmp_path / 'foreign.onnx')]) == 2
    assert 'has no mm2onnx metadata' in capsys.readouterr().err
