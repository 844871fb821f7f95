"""What is wrong for the converters of checkpoints: configs, keys that become one, values, EMA weights."""

import pytest
import torch

from mmdeploy_ext.cli import convert_app
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.seeded import by_name as seeded_by_name
from mmdeploy_ext.weights.checkpoint import load_checkpoint
from mmdeploy_ext.weights.convert.solo_names import original_name
from model_shapes import model_shapes
from refusals import REPOSITORY, snapshot

SOLO, RTDETR = (REPOSITORY / f'configs/demo/{name}_toy.py' for name in ('solov2', 'rtdetr'))


@pytest.fixture
def refuses(tmp_path, capfd):
    """Return a call of a converter that gives the one line of its refusal; no file may change."""

    def call(tool, *arguments):
        before = snapshot(tmp_path)
        capfd.readouterr()
        assert convert_app.main([tool, *map(str, arguments)]) == 2
        error = capfd.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1, error
        assert snapshot(tmp_path) == before
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
    """Tool -> arguments of a good command."""
    torch.save({'state_dict': solo_weights}, tmp_path / 'solo.pth')
    torch.save({'model': rtdetr_weights}, tmp_path / 'rtdetr.pth')
    configs = {'solo': SOLO, 'rtdetr': RTDETR}
    return {
        name: [tmp_path / f'{name}.pth', tmp_path / 'out.pth', '--config', config]
        for name, config in configs.items()
    }


@pytest.mark.parametrize(
    ('text', 'key'),
    [
        ('model = dict(mask_head={head})', 'model.backbone'),
        ('model = dict(backbone={net})', 'mask_head.type'),
    ],
)
def test_a_config_that_solo_cannot_have(text, key, tmp_path, refuses):
    names = dict(head='dict(type="SOLOV2Head", num_grids=[5, 4])', net='dict(type="ResNet", depth=50)')
    (tmp_path / 'wrong.py').write_text(text.format(**names) + '\n')
    (tmp_path / 'solo.pth').write_bytes(b'never read')
    said = refuses('solo', tmp_path / 'solo.pth', tmp_path / 'out.pth', '--config', tmp_path / 'wrong.py')
    assert 'wrong.py' in said and key in said


@pytest.mark.parametrize('tool', ['solo', 'rtdetr'])
def test_an_input_is_not_written_over(tool, inputs, refuses):
    source, target, option, config = inputs[tool]
    assert source.name in refuses(tool, source, source, option, config)
    torch.save({'model': {}}, source)
    assert source.name in refuses(tool, source, target, option, config)


def test_ema_weights_are_taken_where_they_are(inputs, rtdetr_weights, refuses):
    plain = {key: value + 1 for key, value in rtdetr_weights.items()}
    torch.save({'ema': rtdetr_weights, 'model': plain}, inputs['rtdetr'][0])
    for weights, wanted in (('auto', rtdetr_weights), ('ema', rtdetr_weights), ('model', plain)):
        words = ['rtdetr', *map(str, inputs['rtdetr']), '--weights', weights]
        assert convert_app.main(words) == 0
        found = load_checkpoint(inputs['rtdetr'][1]).state_dict
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    torch.save({'ema': {'module': rtdetr_weights}}, inputs['rtdetr'][0])
    assert '--weights model' in refuses('rtdetr', *inputs['rtdetr'], '--weights', 'model')


@pytest.mark.parametrize('legacy', [False, True])
def test_both_of_torchs_file_formats_load(legacy, tmp_path):
    weights = torch.load(REPOSITORY / 'demo/checkpoints/atss_toy.pth')['state_dict']
    torch.save(weights, tmp_path / 'bare.pth', _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(tmp_path / 'bare.pth')
    assert loaded.meta == {} and loaded.state_dict.keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict[key], weights[key]) for key in weights)
