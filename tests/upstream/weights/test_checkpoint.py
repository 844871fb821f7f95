"""Checkpoints: what loads, and what counts as fitting."""

import dataclasses
import json
import os
import zipfile

import pytest
import torch
from mmcv import Config
from mmcv.runner import load_state_dict
from torch import nn

from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint, load_checkpoint, load_strict, read_content
from mmdeploy_ext.upstream.weights.convert.conversion import save_checkpoint


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def checkpoint(**changes) -> Checkpoint:
    """Return the weights of a tiny model plus one; None removes a key."""
    weights = {key: value + 1 for key, value in tiny().state_dict().items()}
    weights.update({key.replace('_', '.', 1): value for key, value in changes.items()})
    return Checkpoint('w.pth', {key: value for key, value in weights.items() if value is not None}, {})


def test_the_weights_reach_the_model():
    model = tiny()
    load_strict(model, checkpoint())
    assert all(torch.equal(value, checkpoint().state_dict[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'0_bias': None}, r'missing keys 1 \(0\.bias\)'),
        ({'2_bias': torch.ones(3)}, r'unexpected keys 1 \(2\.bias\)'),
        ({'0_weight': torch.ones(5, 2)}, r'0\.weight: \(5, 2\) in the file, \(3, 2\) in the model'),
        ({'0_weight': torch.full((3, 2), torch.nan)}, r'not finite: 1 \(0\.weight'),
        ({'0_weight': torch.ones(3, 2, dtype=torch.int8)}, r'0\.weight: int8 in the file'),
    ],
)
def test_every_key_has_to_be_accounted_for(changes, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load_strict(tiny(), checkpoint(**changes))
    assert error.value.exit_code == 2


def test_keys_that_inference_does_not_use_may_be_there_or_not():
    weights = checkpoint(**{'aux_head': torch.ones(1), '1_num_batches_tracked': None})
    load_strict(tiny(), weights, ('aux', '1.num'))
    model = tiny()
    load_strict(model, checkpoint(**{'0_bias': None}), ('0.bias',))  # whoever reads it after all sees NaN
    assert model[0].bias.isnan().all() and not model[0].weight.isnan().any()
    with pytest.raises(CheckpointError, match=r'1 \(aux\.head\)'):
        load_strict(tiny(), checkpoint(aux_head=torch.ones(1)), ('au.', 'x'))


def test_half_precision_weights_become_those_of_the_model():
    model, halves = tiny(), checkpoint()
    halves.state_dict.update({key: value.half() for key, value in halves.state_dict.items()})
    load_strict(model, halves)
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, halves.state_dict['0.weight'].float())


@pytest.mark.parametrize('wrapped', [True, False])
def test_the_prefix_of_a_parallel_wrapper_goes(wrapped, tmp_path):
    weights = {f'module.{key}': value for key, value in tiny().state_dict().items()}
    content = dict(state_dict=weights, meta=dict(epoch=3)) if wrapped else weights
    torch.save(content, tmp_path / 'w.pth', _use_new_zipfile_serialization=wrapped)  # else as of torch 1.5
    loaded = load_checkpoint(tmp_path / 'w.pth')
    load_strict(tiny(), loaded)
    assert loaded.meta == (dict(epoch=3) if wrapped else {}) and loaded.path == str(tmp_path / 'w.pth')


def test_a_state_dict_below_model_is_taken_unless_there_are_averages(tmp_path):
    path, weights = tmp_path / 'w.pth', checkpoint().state_dict
    torch.save({'model': weights, 'optimizer': {}, 'meta': {'CLASSES': ('a',)}}, path)
    loaded = load_checkpoint(path)
    assert loaded.state_dict.keys() == weights.keys() and loaded.meta == {'CLASSES': ('a',)}
    torch.save({'model': weights, 'ema': weights}, path)
    with pytest.raises(CheckpointError, match='state_dict'):
        load_checkpoint(path)
    torch.save({'model': {'backbone.res_layers.0.weight': torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match='rtdetr'):
        load_checkpoint(path)


def test_weights_that_the_user_leaves_out_may_be_unexpected(tmp_path):
    weights = tiny().state_dict()
    torch.save(weights | {'mask_head.conv.weight': torch.ones(1)}, tmp_path / 'w.pth')
    loaded = load_checkpoint(tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'--ignore-keys mask_head\.conv\.'):
        load_strict(tiny(), loaded)
    load_strict(tiny(), loaded.without(['mask_head.']))
    with pytest.raises(CheckpointError, match='--ignore-keys maskhead'):
        loaded.without(['maskhead'])


def test_the_buffers_of_an_ema_hook_are_left_out_as_mmcv_leaves_them_out():
    model, expected, file = tiny(), tiny(), checkpoint()
    averages = {f'ema_{key.replace(".", "_")}': value * 2 for key, value in file.state_dict.items()}
    file = dataclasses.replace(file, state_dict=file.state_dict | averages)
    load_strict(model, file)
    load_state_dict(expected, file.state_dict, strict=False)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    with pytest.raises(CheckpointError, match=r'unexpected keys 1 \(ema_0_gain\)'):
        load_strict(
            model,
            dataclasses.replace(file, state_dict=file.state_dict | dict(ema_0_gain=averages['ema_0_bias'])),
        )


class Renamed(nn.Module):
    """Reads weights of its first version, which has no number, under an older name."""

    _version = 1

    def __init__(self):
        super().__init__()
        self.cls = nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version') is None:
            state_dict[f'{prefix}conv_cls.weight'] = state_dict.pop(f'{prefix}cls.weight')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_modules_see_their_version_in_the_file(tmp_path):
    model = nn.Sequential(Renamed())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'w.pth')
    loaded = nn.Sequential(Renamed())
    load_strict(loaded, load_checkpoint(tmp_path / 'w.pth'))
    assert torch.equal(loaded[0].cls.weight, model[0].cls.weight)
    save_checkpoint(tmp_path / 'saved.pth', model.state_dict(), {})
    load_strict(loaded, load_checkpoint(tmp_path / 'saved.pth'))


def test_a_weight_whose_name_is_taken_for_an_older_one_is_missing():
    weights = Renamed().state_dict()
    with pytest.raises(CheckpointError, match=r'missing keys 1 \(cls\.weight\)'):
        load_strict(Renamed(), Checkpoint('w.pth', dict(weights), {}))


def test_a_weight_of_another_shape_under_an_older_name_is_named():
    weights = {'cls.weight': torch.ones(2, 2), 'cls.bias': torch.ones(2)}
    model = Renamed()
    model.conv_cls = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match=r'w\.pth: .*conv_cls\.weight'):
        load_strict(model, Checkpoint('w.pth', weights, {}))


def test_a_flipped_bit_of_any_tensor_is_found(tmp_path):
    path = tmp_path / 'w.pth'
    torch.save({'state_dict': {'first': torch.rand(3, 2), 'last': torch.rand(5)}}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if '/data/' in name]
        places = {name: whole.index(archive.read(name)) for name in names}
    assert len(places) == 2
    for name, place in places.items():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)


def test_a_checkpoint_that_was_saved_without_sums_loads(tmp_path):
    computes = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'state_dict': tiny().state_dict()}, tmp_path / 'w.pth')
    finally:
        torch.serialization.set_crc32_options(computes)
    assert load_checkpoint(tmp_path / 'w.pth').state_dict.keys() == tiny().state_dict().keys()


def test_pickles_of_newer_protocols_sparse_tensors_and_safetensors_are_read(tmp_path):
    weights = tiny().state_dict()
    torch.save(dict(state_dict=weights, args=Config(dict(a=1))), tmp_path / 'w.pth', pickle_protocol=4)
    torch.save({**weights, '0.weight': weights['0.weight'].to_sparse()}, tmp_path / 'sparse.pth')
    header, numbers = {}, b''
    for name, tensor in weights.items():
        dtype, content = ('I64' if tensor.dtype == torch.int64 else 'F32'), tensor.numpy().tobytes()
        offsets = [len(numbers), len(numbers) + len(content)]
        header[name] = dict(dtype=dtype, shape=list(tensor.shape), data_offsets=offsets)
        numbers += content
    text = json.dumps(header).encode()
    (tmp_path / 'w.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + numbers)
    for name in ('w.pth', 'sparse.pth', 'w.safetensors'):
        read = load_checkpoint(tmp_path / name).state_dict
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[key], tensor) for key, tensor in weights.items())


def test_tensors_without_values_and_pipes_are_named(tmp_path):
    torch.save({'0.weight': torch.empty(3, 2, device='meta')}, tmp_path / 'meta.pth')
    os.mkfifo(tmp_path / 'pipe.pth')
    for name, reason in (('meta.pth', r'meta.*0\.weight'), ('pipe.pth', 'pipe')):
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path / name)


def test_a_value_that_the_cast_makes_infinite_is_refused():
    weight = torch.full((3, 2), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r'not finite: 1 \(0\.weight'):
        load_strict(tiny(), checkpoint(**{'0_weight': weight}))


def test_a_path_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'words.pth').write_text('weights')
    (tmp_path / '0.pth').write_bytes(b'')
    torch.save(tiny().state_dict(), tmp_path / 'whole.pth')
    content = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'index.pth').write_bytes(content.replace(b'PK\x01\x02', b'PK\x01\x03'))
    torch.jit.script(nn.ReLU()).save(tmp_path / 'jit.pth')
    said = {
        '': 'is a folder',
        'none.pth': 'no such checkpoint',
        'words.pth': 'is not a PyTorch checkpoint',
        '0.pth': 'is empty',
        'index.pth': 'is damaged',
        'jit.pth': 'TorchScript',
        '/proc/self/mem': 'cannot be read',  # as a disk that fails
    }
    for name, reason in said.items():
        with pytest.raises(CheckpointError, match=reason):
            read_content(tmp_path / name)
