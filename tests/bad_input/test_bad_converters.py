"""Converters of checkpoints: ordinary mistakes are one line, nothing is merged, ignored or half written."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.seeded import by_name as seeded_by_name
from mmdeploy_ext.weights.checkpoint import load_checkpoint
from mmdeploy_ext.weights.convert.solo_names import original_name
from model_shapes import model_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
SOLO = REPOSITORY / 'configs/demo/solov2_toy.py'
RTDETR = REPOSITORY / 'configs/demo/rtdetr_toy.py'
CONVERTERS = ('solo', 'rtdetr')
NORM = 'backbone.conv1.conv1_1.norm.'


def run_tool(tool, *arguments):
    """Return the exit status of a script, run in this process."""
    before = list(sys.path)
    try:
        main = runpy.run_path(str(REPOSITORY / ('tools/convert.py' if tool in CONVERTERS else tool)))['main']
        kind = [tool] if tool in CONVERTERS else []
        return main([*kind, *(str(argument) for argument in arguments)])
    finally:
        sys.path[:] = before


@pytest.fixture
def refuses(tmp_path, capfd, contents):
    """Return a call of a tool that gives the line of its refusal, and sees that no file came or changed."""

    def call(tool, *arguments, status=2):
        before = contents(tmp_path)
        capfd.readouterr()
        assert run_tool(tool, *arguments) == status
        error = capfd.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1, error
        assert contents(tmp_path) == before
        return error

    return call


@pytest.fixture(scope='module')
def solo_weights():
    shapes = {key: list(shape) for key, shape in model_shapes(load_config(str(SOLO))).items()}
    return seeded_by_name.solo_weights({original_name(key): shape for key, shape in shapes.items()})


@pytest.fixture(scope='module')
def rtdetr_weights(tmp_path_factory):
    from toy_rtdetr import write_checkpoint

    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp('rtdetr') / 'seeded.pth')).state_dict


@pytest.fixture
def inputs(tmp_path, solo_weights, rtdetr_weights):
    """Return tool -> arguments of a good command."""
    torch.save({'state_dict': solo_weights}, tmp_path / 'solo.pth')
    torch.save({'model': rtdetr_weights}, tmp_path / 'rtdetr.pth')
    configs = {'solo': SOLO, 'rtdetr': RTDETR}
    return {
        name: [tmp_path / f'{name}.pth', tmp_path / 'out.pth', '--config', config]
        for name, config in configs.items()
    }


# ---- configs


def test_grids_that_a_config_leaves_to_mmdet_are_mmdets(tmp_path, solo_weights, capfd):
    cfg = load_config(str(SOLO))
    del cfg.model.mask_head['num_grids']
    (tmp_path / 'bare.py').write_text(cfg.pretty_text)
    torch.save({'state_dict': solo_weights}, tmp_path / 'solo.pth')
    arguments = [tmp_path / 'solo.pth', tmp_path / 'out.pth', '--config', tmp_path / 'bare.py']
    assert run_tool('solo', *arguments) == 0, capfd.readouterr().err


# ---- writing


@pytest.mark.parametrize(('tool', 'limit'), [('solo', 10_000), ('rtdetr', 200_000)])
def test_a_full_disk_is_one_line_and_leaves_neither_checkpoint_nor_config(
    tool, limit, inputs, refuses, limited_files
):
    with limited_files(limit):
        said = refuses(tool, *inputs[tool], status=1)
    assert 'could not be written (File too large); free some space' in said


@pytest.mark.parametrize('tool', CONVERTERS)
def test_a_config_is_not_written_over(tool, inputs, refuses):
    source, _, option, config = inputs[tool]
    copy = source.with_name('mine.py')
    copy.write_text(config.read_text())
    assert 'mine.py' in refuses(tool, source, copy, option, copy)
    copy.write_bytes(b'\xff\xfe no text')
    if tool == 'solo':
        assert 'mine.py: is there already' in refuses(tool, source, copy.with_suffix('.pth'), option, config)


# ---- two keys that become one


def test_a_key_with_and_without_the_prefix_of_a_wrapper_is_refused_by_both_names(
    inputs, rtdetr_weights, solo_weights, refuses
):
    key = NORM + 'weight'
    torch.save({'model': {**rtdetr_weights, f'module.{key}': rtdetr_weights[key] + 1}}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'])
    assert f'rtdetr.pth: {key} and module.{key} both become {key}' in said
    key = next(iter(solo_weights))
    torch.save({f'module.{key}': solo_weights[key], key: solo_weights[key]}, inputs['solo'][0])
    said = refuses('solo', *inputs['solo'])
    assert f'solo.pth: module.{key} and {key} both become {key}' in said
    with pytest.raises(CheckpointError, match=r'solo\.pth'):
        load_checkpoint(inputs['solo'][0])


def test_the_chosen_weights_are_taken_and_named(inputs, rtdetr_weights, capfd):
    plain = {key: value + 1 for key, value in rtdetr_weights.items()}
    torch.save({'ema': rtdetr_weights, 'model': plain}, inputs['rtdetr'][0])
    for weights, wanted, origin in (
        ('auto', rtdetr_weights, 'EMA weights'),
        ('ema', rtdetr_weights, 'EMA weights'),
        ('model', plain, 'plain weights (model)'),
    ):
        assert run_tool('rtdetr', *inputs['rtdetr'], '--weights', weights) == 0
        found = load_checkpoint(inputs['rtdetr'][1]).state_dict
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        assert f'from {origin}' in capfd.readouterr().out


def test_plain_weights_that_are_not_there_are_refused(inputs, rtdetr_weights, refuses):
    torch.save({'ema': {'module': rtdetr_weights}, 'date': 'x'}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'], '--weights', 'model')
    assert 'rtdetr.pth: --weights model' in said
