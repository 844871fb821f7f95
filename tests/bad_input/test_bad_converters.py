"""Converters of checkpoints: ordinary mistakes are one line, nothing is merged, ignored or half written."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.seeded import by_name as seeded_by_name
from mmdeploy_ext.weights.checkpoint import load_checkpoint, load_strict
from mmdeploy_ext.weights.convert.rtdetr import DENOISING, read_safetensors
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


SOLO_CONFIGS = {
    'log_level = "INFO"': 'model=None, expected a dict',
    'model = dict(mask_head={head})': 'model.backbone=None, expected a dict',
    'model = dict(backbone={net})': 'mask_head.type=None, expected one of SOLOV2Head, SOLOHead',
    'model = dict(backbone={net}, mask_head=[1])': 'mask_head.type=None, expected one of',
    'model = dict(backbone=dict(type="RegNet", arch="x"), mask_head={head})': 'model.backbone.depth=None',
    'model = dict(backbone=dict(type="ResNet", depth="50"), mask_head={head})': "model.backbone.depth='50'",
    'model = dict(backbone={net}, mask_head=dict({head}, num_grids=None))': 'num_grids=None, expected a list',
    'model = dict(backbone={net}, mask_head=dict({head}, num_grids=[40, "x"]))': "num_grids=[40, 'x']",
    'model = dict(backbone={net}, mask_head=dict({head}, stacked_convs="4"))': "stacked_convs='4'",
    'model = dict(backbone={net}, mask_head=dict({head}, dcn_cfg="DCN"))': "model.mask_head.dcn_cfg='DCN'",
    'model = dict(backbone={net}, mask_head=dict({head}, norm_cfg="GN"))': "model.mask_head.norm_cfg='GN'",
    'model = dict(backbone=dict(depth=50, dcn=3), mask_head={head})': 'model.backbone.dcn=3',
    'model = dict(backbone={net}, mask_head={head})\ntest_pipeline = 3': 'test_pipeline=3, expected a list',
    'model = dict(backbone={net}, mask_head={head})\ndata = dict(test=dict(pipeline=["x"]))': (
        "data.test.pipeline=['x'], expected a list of dicts"
    ),
}


@pytest.mark.parametrize('text', SOLO_CONFIGS)
def test_a_config_that_solo_cannot_have_is_refused_by_file_and_key(text, tmp_path, refuses):
    names = dict(head='dict(type="SOLOV2Head", num_grids=[5, 4])', net='dict(type="ResNet", depth=50)')
    (tmp_path / 'wrong.py').write_text(text.format(**names) + '\n')
    (tmp_path / 'solo.pth').write_bytes(b'never read')
    arguments = [tmp_path / 'solo.pth', tmp_path / 'out.pth', '--config', tmp_path / 'wrong.py']
    said = refuses('solo', *arguments)
    assert 'wrong.py: ' in said and SOLO_CONFIGS[text] in said, said


def test_grids_that_a_config_leaves_to_mmdet_are_mmdets(tmp_path, solo_weights, capfd):
    cfg = load_config(str(SOLO))
    del cfg.model.mask_head['num_grids']
    (tmp_path / 'bare.py').write_text(cfg.pretty_text)
    torch.save({'state_dict': solo_weights}, tmp_path / 'solo.pth')
    arguments = [tmp_path / 'solo.pth', tmp_path / 'out.pth', '--config', tmp_path / 'bare.py']
    assert run_tool('solo', *arguments) == 0, capfd.readouterr().err


@pytest.mark.suite('[24, 20,,]', '(24)')
@pytest.mark.parametrize('grids', ['[24, 20,,]', '[1 2]', '(24)', '[]', '[024]'])
def test_a_config_in_the_checkpoint_whose_grids_cannot_be_read_says_nothing(grids, inputs, solo_weights):
    meta = dict(config=f'bbox_head=dict(num_grids={grids})')
    torch.save({'state_dict': solo_weights, 'meta': meta}, inputs['solo'][0])
    assert run_tool('solo', *inputs['solo']) == 0


def test_a_model_that_cannot_be_built_is_a_mistake_of_the_config_not_of_the_checkpoint(inputs, refuses):
    option = ['--cfg-options', 'model.decoder.num_classes=x']
    said = refuses('rtdetr', *inputs['rtdetr'], *option)
    assert said.startswith(f'error: {RTDETR}: the model cannot be built (')


# ---- writing


@pytest.mark.suite('solo-10000', 'rtdetr-200000')
@pytest.mark.parametrize('limit', [10_000, 200_000])
@pytest.mark.parametrize('tool', CONVERTERS)
def test_a_full_disk_is_one_line_and_leaves_neither_checkpoint_nor_config(
    tool, limit, inputs, refuses, limited_files
):
    with limited_files(limit):
        said = refuses(tool, *inputs[tool], status=1)
    assert 'could not be written (File too large); free some space' in said


def test_a_full_disk_leaves_the_earlier_pair_as_it_was(inputs, refuses, limited_files):
    target = inputs['solo'][1]
    assert run_tool('solo', *inputs['solo']) == 0
    assert target.exists() and target.with_suffix('.py').exists()
    with limited_files(200_000):
        refuses('solo', *inputs['solo'], status=1)


@pytest.mark.parametrize('tool', CONVERTERS)
def test_a_config_is_not_written_over(tool, inputs, refuses):
    source, _, option, config = inputs[tool]
    copy = source.with_name('mine.py')
    copy.write_text(config.read_text())
    assert 'mine.py' in refuses(tool, source, copy, option, copy)
    copy.write_bytes(b'\xff\xfe no text')
    if tool == 'solo':
        assert 'mine.py: is there already' in refuses(tool, source, copy.with_suffix('.pth'), option, config)


def test_an_output_that_would_be_read_as_safetensors_is_refused(inputs, refuses):
    source, target, *rest = inputs['rtdetr']
    said = refuses('rtdetr', source, target.with_suffix('.safetensors'), *rest)
    assert 'out.safetensors: ' in said and '.pth' in said


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


TRANSFORMERS = 'model.backbone.model.embedder.embedder.0.convolution.weight'


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        (
            'encoder.encoder.0.layers.0.self_attn.o_proj.bias',
            'encoder.aifi.0.layers.0.self_attn.out_proj.bias',
        ),
        ('decoder.layers.0.fc1.bias', 'decoder.layers.0.mlp.fc1.bias'),
        ('encoder.encoder.0.layers.0.self_attn.q_proj.bias', 'encoder.aifi.0.layers.0.self_attn.q_proj.bias'),
    ],
)
def test_both_spellings_of_transformers_in_one_file_are_refused_by_both_names(one, other, inputs, refuses):
    names = [f'model.{name}' for name in (one, other)]
    tensors = {TRANSFORMERS: torch.zeros(1), **{name: torch.zeros(2) for name in names}}
    torch.save(tensors, inputs['rtdetr'][0])
    assert f'{names[0]} and {names[1]} both become' in refuses('rtdetr', *inputs['rtdetr'])


def test_projections_apart_and_joined_in_one_file_are_refused(inputs, refuses):
    apart = [f'model.decoder.layers.0.self_attn.{letter}_proj.bias' for letter in 'qkv']
    joined = 'decoder.decoder.layers.0.self_attn.in_proj_bias'
    torch.save({key: torch.zeros(2) for key in (TRANSFORMERS, joined, *apart)}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'])
    assert f'{joined} and {apart[0]} both become {joined}' in said


def write_safetensors(path, header, data=b''):
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text.encode()).to_bytes(8, 'little') + text.encode() + data)
    return path


@pytest.mark.parametrize('change', [dict(data_offsets=[-4, 0]), dict(shape=[-1]), dict(data_offsets=[0, 8])])
def test_tensors_outside_of_a_file_of_safetensors_are_refused(change, tmp_path):
    entry = dict(dtype='F32', shape=[1], data_offsets=[0, 4]) | change
    path = write_safetensors(tmp_path / 'a.safetensors', dict(a=entry), b'1234')
    with pytest.raises(CheckpointError, match=r'damaged \(ValueError: a is \['):
        read_safetensors(path)


def test_a_name_that_safetensors_hold_twice_and_a_type_that_rtdetr_has_not_are_refused(inputs, refuses):
    _, *rest = inputs['rtdetr']
    path = inputs['rtdetr'][0].with_name('twice.safetensors')
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    write_safetensors(path, f'{{"a": {entry}, "a": {entry}}}', b'1234')
    assert "twice.safetensors: holds 'a' twice" in refuses('rtdetr', path, *rest)
    write_safetensors(path, {'a': dict(dtype='F8_E4M3', shape=[1], data_offsets=[0, 1])}, b'1')
    assert "twice.safetensors: a is of type 'F8_E4M3', expected F32" in refuses('rtdetr', path, *rest)


# ---- --weights


@pytest.mark.parametrize('weights', ['ema', 'model'])
@pytest.mark.parametrize('kind', ['safetensors', 'transformers', 'bare'])
def test_weights_cannot_be_chosen_where_a_file_holds_one_set(kind, weights, inputs, rtdetr_weights, refuses):
    source, *rest = inputs['rtdetr']
    if kind == 'safetensors':
        entry = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
        source = write_safetensors(source.with_suffix('.safetensors'), {TRANSFORMERS: entry}, b'1234')
    else:
        tensors = rtdetr_weights if kind == 'bare' else {TRANSFORMERS: torch.zeros(1)}
        torch.save(tensors, source)
    said = refuses('rtdetr', source, *rest, '--weights', weights)
    assert f'{source.name}: holds one set of weights' in said
    assert f'--weights {weights} has nothing to choose from; leave it away' in said


def test_ema_weights_without_their_module_are_taken_and_named(inputs, rtdetr_weights, capfd):
    plain = {key: value + 1 for key, value in rtdetr_weights.items()}
    torch.save({'ema': rtdetr_weights, 'model': plain}, inputs['rtdetr'][0])
    for weights, wanted, origin in (
        ('auto', rtdetr_weights, 'EMA weights (ema)'),
        ('ema', rtdetr_weights, 'EMA weights (ema)'),
        ('model', plain, 'plain weights (model)'),
    ):
        assert run_tool('rtdetr', *inputs['rtdetr'], '--weights', weights) == 0
        found = load_checkpoint(inputs['rtdetr'][1]).state_dict
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        out = capfd.readouterr().out
        assert f'from {origin}\n' in out and 'no EMA' not in out


def test_ema_weights_that_cannot_be_found_are_not_passed_over(inputs, rtdetr_weights, refuses):
    torch.save({'ema': {'shadow': {'a': torch.zeros(1)}}, 'model': rtdetr_weights}, inputs['rtdetr'][0])
    for weights in ('auto', 'ema'):
        said = refuses('rtdetr', *inputs['rtdetr'], '--weights', weights)
        assert "rtdetr.pth: ema holds ['shadow']" in said and '--weights model' in said
    assert run_tool('rtdetr', *inputs['rtdetr'], '--weights', 'model') == 0


def test_plain_weights_that_are_not_there_are_refused(inputs, rtdetr_weights, refuses):
    torch.save({'ema': {'module': rtdetr_weights}, 'date': 'x'}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'], '--weights', 'model')
    assert "rtdetr.pth: has no plain weights (model), only ['date', 'ema']" in said


# ---- values


VALUES = {
    'integer codes': (lambda value: value.to(torch.int8), 'int8 in the file, float32 in the model'),
    'complex': (lambda value: value.to(torch.complex64), 'complex64 in the file'),
    'without numbers': (lambda value: value.to('meta'), 'without numbers (device meta)'),
    'sparse': (lambda value: value.to_sparse(), 'sparse'),
    'quantised': (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'qint8'),
}


@pytest.mark.suite('complex', 'quantised')
@pytest.mark.parametrize('kind', VALUES)
def test_values_that_are_no_weights_are_refused_by_key(kind, inputs, rtdetr_weights, solo_weights, refuses):
    change, words = VALUES[kind]
    key = NORM + 'weight'
    torch.save({'model': {**rtdetr_weights, key: change(rtdetr_weights[key])}}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'])
    assert 'rtdetr.pth: ' in said and key in said and words in said, said
    key = 'backbone.bn1.weight'
    torch.save({'state_dict': {**solo_weights, key: change(solo_weights[key])}}, inputs['solo'][0])
    said = refuses('solo', *inputs['solo'])
    assert 'solo.pth: ' in said and key in said and words in said, said
    model = torch.nn.BatchNorm2d(4)
    torch.save({**model.state_dict(), 'weight': change(torch.ones(4))}, inputs['solo'][0])
    with pytest.raises(CheckpointError, match=r'solo\.pth: .*weight') as error:
        load_strict(model, load_checkpoint(inputs['solo'][0]))
    assert words in str(error.value)


@pytest.mark.parametrize(
    'key',
    [DENOISING, 'decoder.enc_score_head.weight', NORM + 'weight'],
)
def test_a_number_in_place_of_a_tensor_of_rtdetr_is_refused_by_key(key, inputs, rtdetr_weights, refuses):
    torch.save({'model': {**rtdetr_weights, key: torch.tensor(1.0)}}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'])
    assert 'rtdetr.pth: ' in said and key in said


def test_projections_of_different_widths_are_refused_by_name(inputs, refuses):
    tensors = {f'model.decoder.layers.0.self_attn.{letter}_proj.weight': torch.zeros(4, 4) for letter in 'qk'}
    tensors['model.decoder.layers.0.self_attn.v_proj.weight'] = torch.zeros(4, 5)
    torch.save({TRANSFORMERS: torch.zeros(1), **tensors}, inputs['rtdetr'][0])
    said = refuses('rtdetr', *inputs['rtdetr'])
    assert 'rtdetr.pth: ' in said and 'self_attn.in_proj_weight' in said and '(4, 5)' in said


@pytest.mark.parametrize(
    ('key', 'shape'),
    [
        ('backbone.layer2.0.conv2_offset.weight', ()),
        ('backbone.layer2.0.conv2_offset.weight', (18, 0, 3, 0)),
        ('bbox_head.solo_ins_list.0.weight', ()),
    ],
)
def test_odd_shapes_of_solo_are_refused_by_key(key, shape, inputs, solo_weights, refuses):
    torch.save({'state_dict': {**solo_weights, key: torch.zeros(shape)}}, inputs['solo'][0])
    assert 'solo.pth: ' in refuses('solo', *inputs['solo'])


@pytest.mark.parametrize('tool', CONVERTERS)
@pytest.mark.parametrize('content', [{}, {'state_dict': {}}, {'model': {}}, {0: torch.zeros(1)}, [1]])
def test_files_without_weights_are_refused(tool, content, inputs, refuses):
    torch.save(content, inputs[tool][0])
    assert f'{tool}.pth: ' in refuses(tool, *inputs[tool])


def test_pipelines_of_data_sets_in_data_sets_and_without_a_scale_get_the_originals_scale():
    from mmdeploy_ext.weights.convert.solo_config import find_test_pipelines, set_light_dcn_scale

    step = dict(type='MultiScaleFlipAug', scale_factor=1.0)
    dataset = dict(type='RepeatDataset', dataset=dict(pipeline=[step, {}]))
    cfg = dict(data=dict(test=[dataset, dict(pipeline=[dict(type='Resize')])], val=None))
    found = dict(find_test_pipelines(cfg))
    assert list(found) == ['data.test[0].dataset.pipeline', 'data.test[1].pipeline']
    for pipeline in found.values():
        set_light_dcn_scale(pipeline)
    assert step == dict(type='MultiScaleFlipAug', img_scale=(852, 512))
