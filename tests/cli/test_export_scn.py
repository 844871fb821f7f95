"""`export_scn.py`: files of both targets, their proof, planted faults, and refusals in one line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import toy_scn_family
from marking import in_suite
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import export_app, info_app
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.proving.backbone import compare_node_lists
from proofs import prove
from refusals import refused
from scn_files import node_of, set_attribute
from verdicts import cases_of, graphs_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def models(tmp_path_factory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp('models')
    return {net: toy_scn_family.write_model(folder, net) for net in toy_scn_family.NETS}


def export(*words) -> int:
    try:
        return export_app.main(['--backbone', *map(str, words)])
    except SystemExit as error:
        return error.code


@pytest.fixture(scope='module')
def detector(models):
    return deploy.load(*models['bevfusion'])


@pytest.fixture(scope='module')
def sweeps(tmp_path_factory):
    """Return a folder of voxels, in the order of the first network."""
    folder, rng = tmp_path_factory.mktemp('sweeps'), np.random.default_rng(0)
    for index in range(2):
        flat = rng.choice(np.prod(toy_scn_family.GRID), 400, replace=False)
        axes = np.stack(np.unravel_index(flat, toy_scn_family.GRID), 1)
        coordinates = np.pad(axes, ((0, 0), (1, 0))).astype(np.int16)
        features = rng.standard_normal((400, 5)).astype(np.float16)
        np.savez(folder / f'{index}.npz', features=features, coordinates=coordinates)
    return folder


# ---- files and their proof


@pytest.mark.parametrize(
    ('net', 'order', 'target'),
    in_suite(
        [
            ('bevfusion', 'xyz', 'libspconv'),
            ('second', 'xyz', 'libspconv'),
            ('bevfusion', 'zyx', 'portable'),
            ('second', 'xyz', 'portable'),
        ],
        ('bevfusion', 'xyz', 'libspconv'),
        ('second', 'xyz', 'libspconv'),
    ),
)
def test_a_file_is_proven_on_voxels_that_no_exporter_saw(
    models, sweeps, tmp_path, net, order, target, capsys
):
    path, found = tmp_path / f'lidar.{order}.onnx', tmp_path / 'verdict.json'
    words = [*models[net], '--output-file', path, '--order', order, '--target', target]
    words += ['--verify', '--json', found, '--input']
    words += [sweeps / '0.npz' if net == 'bevfusion' else write_points(tmp_path / 's.bin')]
    assert export(*words) == 0, capsys.readouterr()
    verdict = json.loads(found.read_text())
    said = 'proven' if target == 'portable' else 'within fp16 bars'
    assert verdict['verdict'] == said and verdict['summary']['unseen_inputs'] >= 5
    names = {row.tensor.split()[0] for case in cases_of(verdict) for row in case.tensors}
    assert 'dense' in names
    assert len(names - {'dense'}) == {'bevfusion': 21, 'second': 9}[net]
    last = '' if target == 'portable' else ', weights before rounding'
    (exact,) = [row for row in cases_of(verdict)[-1].tensors if row.tensor == f'dense map{last}']
    assert exact.max_rel < 1e-5
    if net == 'second':
        case = cases_of(verdict)[-1]
        assert case.name == 's.bin: 500 points' and int(case.input_shape.split('x')[0]) > 100
    capsys.readouterr()
    assert info_app.main([str(path)]) == 0
    assert f'order {order}' in capsys.readouterr().out


def write_points(path):
    points = np.random.default_rng(0).uniform(-11, 11, (500, 5)).astype(np.float32)
    points[:, 2] /= 4
    points.tofile(path)
    return path


# ---- precision


def test_int8_is_calibrated_kept_and_reused(models, sweeps, tmp_path, capsys):
    path, again = tmp_path / 'a.xyz.onnx', tmp_path / 'b.xyz.onnx'
    words = ['--precision', 'int8', '--int8-fp16-input-output', '--layer-precision', 'conv3=fp16:int8']
    calibrated = [*models['bevfusion'], '--output-file', path, *words, '--calibrate', sweeps]
    assert export(*calibrated) == 0, capsys.readouterr()
    ranges = tmp_path / 'a.xyz.onnx.ranges.json'
    assert export(*models['bevfusion'], '--output-file', again, *words, '--ranges', ranges) == 0
    assert path.read_bytes() == again.read_bytes()
    found = {
        node.name: (node.precision, node.output_precision) for node in libspconv.read(path).convolutions()
    }
    assert found['conv0'] == ('fp16', 'int8') and found['conv20'] == ('int8', 'fp16')
    assert found['conv3'] == ('fp16', 'int8') and found['conv4'] == ('int8', 'int8')
    assert export(*models['bevfusion'], '--output-file', path, '--verify-only') == 0


# ---- planted faults


def tensor(model, name):
    return next(entry for entry in model.graph.initializer if entry.name == name)


def weight(name, change):
    def plant(model):
        values = onnx.numpy_helper.to_array(tensor(model, name))
        tensor(model, name).raw_data = np.ascontiguousarray(change(values), np.float16).tobytes()

    return plant


def attribute(node, name, value):
    return lambda model: set_attribute(node_of(model, node), name, value)


FAULTS = {
    'mirrored kernel': weight('spconv3.weight', lambda values: values[:, ::-1]),
    'bias of another channel': weight('spconv5.bias', lambda values: np.roll(values, 1)),
    'no ReLU': attribute('conv6', 'activation', 'None'),
    'another stride': attribute('conv5', 'stride', [2, 1, 2]),
    'another height': attribute('transpose0', 'dims', [0, 1, 2, 4, 3]),
}


@pytest.mark.parametrize('fault', in_suite(FAULTS, 'mirrored kernel'))
def test_a_planted_fault_is_found_by_structure_and_by_figures(detector, tmp_path, fault):
    path = str(tmp_path / 'x.onnx')
    deploy.export_file(detector, detector.family.choose(order='xyz'), path)
    model = onnx.load(path)
    FAULTS[fault](model)
    onnx.save_model(model, path)
    verdict = prove(detector, path)
    assert not verdict.passed and not graphs_of(verdict)[0].passed
    assert verdict.failures or not all(case.passed for case in cases_of(verdict))


def test_a_stored_node_list_is_compared(models, tmp_path, capsys):
    path, stored = tmp_path / 'x.onnx', tmp_path / 'nodes.json'
    assert export(*models['second'], '--output-file', path, '--order', 'xyz') == 0
    content = libspconv.to_node_list(onnx.load(path))
    assert all(check.passed for check in compare_node_lists(content, content, 'nodes.json'))
    changed = json.loads(json.dumps(content))
    changed['nodes'][3]['inputs'] = ['3', '2']
    stored.write_text(json.dumps(changed))
    words = [*models['second'], '--output-file', path, '--verify-only', '--node-list', stored]
    assert export(*words, '--order', 'zyx') == 1
    out = capsys.readouterr().out
    assert 'nodes.json' in out and 'order as requested' in out
    with pytest.raises(UsageError, match=r'nodes\.json'):
        compare_node_lists(content, content['nodes'], 'nodes.json')


# ---- bad input

BAD_OPTIONS = {
    'portable int8': (['--target', 'portable', '--precision', 'int8'], '--target libspconv'),
    'no sweep': (['--verify', '--input', 'none.bin'], 'none.bin'),
    'a name of another order': (
        ['--output-file', '{folder}/lidar.zyx.onnx', '--order', 'xyz'],
        '--order zyx',
    ),
}


@pytest.mark.parametrize('case', BAD_OPTIONS)
def test_what_cannot_be_meant_is_refused_in_one_line(models, tmp_path, case, capsys):
    words, message = BAD_OPTIONS[case]
    config, checkpoint = models['bevfusion']
    words = [word.format(config=config, folder=tmp_path) for word in words]
    if '--output-file' not in words:
        words += ['--output-file', tmp_path / 'x.onnx']
    assert message in refused(capsys, export_app.main, '--backbone', config, checkpoint, *words)
    assert not list(tmp_path.iterdir())
