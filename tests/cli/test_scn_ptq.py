"""scn_ptq.py: calibration, reuse of edited ranges, fidelity, and what is refused with one line."""

import json

import numpy as np
import pytest
import torch

import toy_scn_family
from mmdeploy_ext.cli.scn_ptq_app import main
from mmdeploy_ext.exporting.sparse.ranges import Ranges
from refusals import refused


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return toy_scn_family.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def sweeps(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweeps')
    for seed in range(3):
        points = np.random.default_rng(seed).uniform((-12, -12, -4, 0, 0), (12, 12, 4, 1, 0.5), (800, 5))
        points.astype(np.float32).tofile(folder / f'{seed}.bin')
    return str(folder)


@pytest.fixture(scope='module')
def ranges(model, sweeps, tmp_path_factory):
    path = tmp_path_factory.mktemp('ranges') / 'ranges.json'
    assert main([*model, '--calibrate', sweeps, '--output', str(path)]) == 0
    return path


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_ranges_are_written_whole(ranges):
    read = Ranges.load(ranges)
    assert (read.calibrator, read.batches) == ('mse', 3)
    assert len(read.nodes) == 29
    assert len(read.checkpoint_sha256) == 64


def test_batches_and_method_are_taken(model, sweeps, tmp_path):
    path = tmp_path / 'ranges.json'
    options = ['--method', 'percentile', '--percentile', 99, '--add-method', 'max', '--batches', 1]
    assert call(*model, '--calibrate', sweeps, *options, '--fp16-ranges', '--output', path) == 0
    read = Ranges.load(path)
    assert (read.calibrator, read.batches) == ('percentile 99 (additions: max)', 1)
    assert read == read.half()


def test_edited_ranges_are_used_and_the_damage_is_found(model, sweeps, ranges, tmp_path, capsys):
    content = json.loads(ranges.read_text())
    content['nodes']['conv5']['input_amax'] /= 30
    edited = tmp_path / 'edited.json'
    edited.write_text(json.dumps(content))
    options = ['--fidelity', sweeps, '--fidelity-batches', 1, '--target', 0.98]
    assert call(*model, '--ranges', edited, *options, '--json', tmp_path / 'found.json') == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['keep_fp16'][0]['name'] == 'conv5'
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if 'conv' in line).split()[0] == 'conv5'
    assert 'Keep in fp16, cosine after each: conv5' in out


def test_ranges_of_a_quantised_checkpoint_need_no_calibration(model, sweeps, ranges, tmp_path):
    content = torch.load(model[1], weights_only=True)
    found = Ranges.load(ranges)
    for node in found.nodes.values():
        path = f'{node.module}.quant_add' if node.weight_amax is None else node.module
        content['state_dict'][f'{path}._input_quantizer._amax'] = torch.tensor(node.input_amax)
        if node.weight_amax is not None:
            amax = torch.tensor(node.weight_amax).reshape(1, 1, 1, 1, -1)
            content['state_dict'][f'{path}._weight_quantizer._amax'] = amax
    torch.save(content, tmp_path / 'ptq.pth')
    output = tmp_path / 'ranges.json'
    assert call(model[0], tmp_path / 'ptq.pth', '--output', output) == 0
    read = Ranges.load(output)
    assert read.calibrator == 'checkpoint'
    assert read.nodes == found.nodes


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        ('', '--calibrate'),
        ('--fidelity', '--fidelity'),
        ('--fidelity no_such', 'no_such'),
        ('--fidelity {sweeps} --fidelity-batches -1', '--fidelity-batches -1'),
        ('--calibrate no_such', 'no_such'),
        ('--calibrate {sweeps} --batches -1', '--batches -1'),
        ('--calibrate {sweeps} --ranges r.json', '--ranges'),
        ('--calibrate {sweeps} --out {sweeps}', 'is a folder'),
    ],
)
def test_options_are_refused_before_the_model_is_read(words, named, sweeps, capsys):
    assert named in refused(capsys, main, 'c.py', 'c.pth', *words.format(sweeps=sweeps).split())


def test_a_checkpoint_without_ranges_needs_a_calibration(model, tmp_path, capsys):
    error = refused(capsys, main, *model, '--out', tmp_path / 'r.json', status=1)
    assert model[1] in error and '--calibrate' in error
