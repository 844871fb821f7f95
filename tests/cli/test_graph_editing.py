"""`graph.py`'s commands that show and edit, also on files of other projects."""

import json
import os
from pathlib import Path

import onnx
import pytest

from marking import in_suite
from mmdeploy_ext.cli.graph_app import main
from mmdeploy_ext.graphs.io import files
from refusals import refused
from toy_graphs import as_in_whole, conv_net

WEIGHTS = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'weights'
FOREIGN = {
    'picodet': 'picodet_layout/layout_cdla.onnx',
    'yolox': 'yolox_nano/yolox_nano.onnx',
    'yunet': 'yunet_mmdet/yunet_n_320_320.onnx',
    'yunet_dynamic': 'yunet_mmdet/yunet_n_dynamic.onnx',
}
"""Files that this project did not write."""


def foreign(name: str) -> str:
    """Return the path of a file of another project; skip where it is not."""
    path = WEIGHTS / FOREIGN[name]
    if not path.is_file():
        pytest.skip(f'skipped: ../shared/data/weights/{FOREIGN[name]} not found')
    return str(path)


EDITS = {
    'picodet': ['extract', '{file}', '--nodes', 'p2o.Conv.5', 'p2o.Add.2?'],
    'yolox': ['extract', '{file}', '--tensors', '683', '687'],
    'yunet': ['set-shape', '{file}', 'input=1,3,h,w'],
    'yunet_dynamic': ['set-shape', '{file}', 'input=2x3x64x96'],
}


@pytest.fixture
def net(tmp_path):
    onnx.save_model(conv_net(), tmp_path / 'net.onnx')
    return str(tmp_path / 'net.onnx')


@pytest.mark.parametrize('name', in_suite(FOREIGN, 'yolox', 'yunet', 'yunet_dynamic'))
def test_files_of_other_projects_are_edited(name, tmp_path):
    source = foreign(name)
    before = Path(source).read_bytes()
    argv = [word.format(file=source) for word in EDITS[name]]
    target, found = tmp_path / 'edited.onnx', tmp_path / 'x.json'
    assert main([*argv, '--output', str(target), '--json', str(found)]) == 0
    content = json.loads(found.read_text())
    assert content['written'] == [str(target)] and content['nodes'][1] <= content['nodes'][0]
    onnx.checker.check_model(str(target), full_check=True)
    as_in_whole(files.load(source), files.load(target))
    assert Path(source).read_bytes() == before


def broken(folder, kind) -> str:
    """Write a file that something is wrong with."""
    model, path = conv_net(), folder / f'{kind}.onnx'
    if kind == 'cycle':
        model.graph.node[0].input[0] = 'd'
    content = model.SerializeToString()
    path.write_bytes(content[: len(content) // 2] if kind == 'truncated' else content)
    return str(path)


BAD = {
    'a truncated file': (['extract', '{truncated}', '--tensors', 'a'], 'truncated.onnx'),
    'a cycle': (['extract', '{cycle}', '--tensors', 'a'], 'cycle.onnx'),
    'no file': (['set-shape', '{folder}/none.onnx', 'batch=1'], 'none.onnx'),
    'an unknown node': (['extract', '{net}', '--nodes', '/stem/Con'], '/stem/Conv'),
    'sizes of no input': (['set-shape', '{net}', 'image=1x3x8x8'], 'images'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, net, tmp_path, capsys):
    words, message = BAD[case]
    paths = {kind: broken(tmp_path, kind) for kind in ('truncated', 'cycle')}
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    target = tmp_path / 'y.onnx'
    argv = [word.format(net=net, folder=tmp_path, **paths) for word in words]
    error = refused(capsys, main, *argv, '--output', target)
    assert message in error and argv[1] in error
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
