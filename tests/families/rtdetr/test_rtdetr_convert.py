"""tools/convert.py rtdetr: checkpoints of the original and of transformers become the same state dict."""

import json
import runpy
import sys

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import rtdetr_golden as golden
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint
from mmdeploy_ext.upstream.weights.convert import rtdetr as library
from mmdeploy_ext.upstream.weights.convert import rtdetr_names as names
from model_shapes import model_shapes

NAME = 'r18vd'


def config():
    return load_config(golden.config_of(NAME))


def numbered(shapes):
    """Return tensors that tell themselves apart: one number each, and one for queries, keys and values."""
    counted = {}
    for number, (key, shape) in enumerate(shapes.items()):
        counted[key] = torch.tensor(float(number)).expand(shape)
        if key.endswith('num_batches_tracked'):
            counted[key] = counted[key].long()
        elif 'in_proj_' in key:
            counted[key] = torch.stack([one + part / 4 for part, one in enumerate(counted[key].chunk(3))])
            counted[key] = counted[key].flatten(0, 1)
    return counted


def to_transformers(tensors, spelling):
    """Return the original's tensors under transformers' names."""
    result = {}
    for key in spelling:
        original = names.original_name(key)
        split = names.SPLIT_PROJECTION.match(original)
        if split:
            joined = tensors[f'{split[1]}in_proj_{split[3]}']
            result[key] = joined.chunk(3)['qkv'.index(split[2])]
        else:
            result[key] = tensors[original]
    return result


@pytest.mark.parametrize('kind', ['hf', 'hf_hubnames'])
def test_both_spellings_of_transformers_become_the_originals_names(kind):
    originals, theirs = golden.keys('original', NAME), golden.keys(kind, NAME)
    tensors = numbered(originals)
    source = to_transformers(tensors, theirs)
    assert {key: list(value.shape) for key, value in source.items()} == theirs
    found = library.convert(library.Source(source, 'transformers'), config())
    assert list(found.state_dict) == list(model_shapes(config()))
    for key, value in found.state_dict.items():
        assert key.endswith('num_batches_tracked') or torch.equal(value, tensors[key]), key


def test_a_key_that_nothing_accounts_for_is_refused():
    tensors = numbered(golden.keys('original', NAME))
    for change, message in (
        ({'encoder.surplus.weight': torch.zeros(1)}, r'unexpected keys 1 \(encoder.surplus.weight'),
        ({'decoder.enc_output.0.bias': torch.zeros(7)}, r'enc_output.0.bias: \(7,\) in the file'),
        ({'decoder.enc_score_head.weight': torch.zeros(20, 256)}, 'the file has 20 classes, .* has 80'),
    ):
        with pytest.raises(CheckpointError, match=message):
            library.convert(library.Source({**tensors, **change}, ''), config())
    del tensors['decoder.enc_output.0.bias']
    with pytest.raises(CheckpointError, match=r'1 \(decoder.enc_output.0.bias'):
        library.convert(library.Source(tensors, ''), config())


def test_eighty_rows_get_a_padding_row_and_deployed_sums_are_left_out():
    tensors = numbered(golden.keys('original', NAME))
    tensors[library.DENOISING] = torch.ones(80, 256)
    tensors['encoder.fpn_blocks.0.bottlenecks.0.conv.weight'] = torch.zeros(1)
    found = library.convert(library.Source(tensors, ''), config())
    rows = found.state_dict[library.DENOISING]
    assert rows.shape == (81, 256) and rows[:80].eq(1).all() and rows[80].eq(0).all()
    assert all(any(word in note for note in found.notes) for word in ('padding row', 'deploy()'))


TOY = 'configs/demo/rtdetr_toy.py'


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Weights of the toy model, small enough to be written as files."""
    from toy_rtdetr import write_checkpoint

    folder = tmp_path_factory.mktemp('rtdetr')
    return folder, load_checkpoint(write_checkpoint(folder / 'seeded.pth')).state_dict


def run_tool(*arguments, model=TOY):
    before = list(sys.path)
    try:
        main = runpy.run_path(str(golden.REPOSITORY / 'tools/convert.py'))['main']
        return main(['rtdetr', *map(str, arguments), '--config', str(golden.REPOSITORY / model)])
    finally:
        sys.path[:] = before


def test_ema_weights_are_taken_where_the_file_holds_them(toy):
    folder, weights = toy
    plain = {key: value + 1 for key, value in weights.items()}
    content = {'model': plain, 'ema': {'module': weights, 'updates': 7}, 'optimizer': {}, 'last_epoch': 3}
    torch.save(content, folder / 'original.pth')
    for option, wanted in (('auto', weights), ('model', plain)):
        assert run_tool(folder / 'original.pth', folder / 'out.pth', '--weights', option) == 0
        found = load_checkpoint(folder / 'out.pth').state_dict
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_other_classes_are_refused_and_can_be_overridden(toy, capsys):
    folder, weights = toy
    torch.save({'model': weights}, folder / 'six.pth')
    option = ['--cfg-options', 'model.decoder.num_classes=7']
    assert run_tool(folder / 'six.pth', folder / 'out4.pth', *option) == 2
    assert 'model.decoder.num_classes=6' in capsys.readouterr().err
    assert not (folder / 'out4.pth').exists()
    seven = {
        key: torch.cat([value[:1], value]) if 'score_head' in key or key == library.DENOISING else value
        for key, value in weights.items()
    }
    torch.save({'model': seven}, folder / 'seven.pth')
    assert run_tool(folder / 'seven.pth', folder / 'out.pth', *option) == 0


def test_safetensors_are_read(toy):
    folder, weights = toy
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for key, value in weights.items():
        if key.endswith('num_batches_tracked'):
            continue
        content = value.numpy().tobytes()
        header[key] = dict(
            dtype='F32', shape=list(value.shape), data_offsets=[len(data), len(data) + len(content)]
        )
        data += content
    text = json.dumps(header).encode()
    path = folder / 'model.safetensors'
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data)
    assert run_tool(path, folder / 'out.pth') == 0
    found = load_checkpoint(folder / 'out.pth').state_dict
    assert all(torch.equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ('theirs', 'original'),
    [
        ('encoder.encoder.0.layers.0.self_attn_layer_norm.bias', 'encoder.encoder.0.layers.0.norm1.bias'),
        ('decoder.layers.4.encoder_attn_layer_norm.weight', 'decoder.decoder.layers.4.norm2.weight'),
        ('decoder.layers.4.final_layer_norm.weight', 'decoder.decoder.layers.4.norm3.weight'),
        ('decoder.bbox_embed.3.layers.2.bias', 'decoder.dec_bbox_head.3.layers.2.bias'),
    ],
)
def test_names_of_equal_shapes_are_not_exchanged(theirs, original):
    assert names.original_name(f'model.{theirs}') == original
