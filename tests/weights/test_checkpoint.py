"""Checkpoints: what loads, and what counts as fitting."""

import dataclasses

import pytest
import torch
from mmcv.runner import load_state_dict
from torch import nn

from mmdeploy_ext.compat.patches_mmcv import numpy_checkpoint_globals
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import Checkpoint, load_checkpoint, load_strict


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


class Halved(nn.Sequential):
    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict({key: value / 2 for key, value in state_dict.items()}, strict)


def test_weights_are_loaded_as_mmcv_loads_them_which_calls_no_override():
    model, expected = Halved(*tiny()), Halved(*tiny())
    load_strict(model, checkpoint())
    load_state_dict(expected, checkpoint().state_dict, strict=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'0_bias': None}, r'^w\.pth: does not fit .*: missing keys 1 \(0\.bias\)\. Use'),
        ({'2_bias': torch.ones(3)}, r'unexpected keys 1 \(2\.bias\)\. Use'),
        (
            {'0_weight': torch.ones(5, 2)},
            r'shapes differ for 1 \(0\.weight: \(5, 2\) in the file, \(3, 2\) in',
        ),
        ({'1_running_mean': None, '9_x': torch.ones(1)}, r'keys 1 \(1\.running_mean\); unexpected keys 1'),
    ],
)
def test_every_key_has_to_be_accounted_for(changes, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load_strict(tiny(), checkpoint(**changes))
    assert error.value.exit_code == 2


def test_a_key_of_another_shape_is_not_called_missing_too():
    with pytest.raises(CheckpointError) as error:
        load_strict(tiny(), checkpoint(**{'0_weight': torch.ones(5, 2)}))
    assert 'missing' not in str(error.value) and 'unexpected' not in str(error.value)


def test_ten_keys_are_listed_and_all_are_counted():
    extra = {f'{index}_extra': torch.ones(1) for index in range(20, 32)}
    with pytest.raises(CheckpointError) as error:
        load_strict(tiny(), checkpoint(**extra))
    message = str(error.value)
    assert 'unexpected keys 12 (20.extra, ' in message and '29.extra ... and 2 more)' in message
    assert '30.extra' not in message


def test_keys_that_inference_does_not_use_may_be_there_or_not():
    weights = checkpoint(**{'aux_head': torch.ones(1), '1_num_batches_tracked': None})
    load_strict(tiny(), weights, ('aux', '1.num'))
    with pytest.raises(CheckpointError, match=r'1 \(aux\.head\)'):
        load_strict(tiny(), checkpoint(aux_head=torch.ones(1)), ('au.', 'x'))


def test_half_precision_weights_become_those_of_the_model():
    model, halves = tiny(), checkpoint()
    halves.state_dict.update({key: value.half() for key, value in halves.state_dict.items()})
    load_strict(model, halves)
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, halves.state_dict['0.weight'].float())


def test_weights_that_are_not_finite_are_refused_by_key_and_count():
    broken = checkpoint()
    broken.state_dict['0.weight'][0, 1] = float('nan')
    broken.state_dict['0.weight'][2, 0] = float('inf')
    broken.state_dict['1.running_var'][:] = float('nan')  # a buffer, and finite in the model
    with pytest.raises(CheckpointError) as error:
        load_strict(tiny(), broken)
    message = str(error.value)
    assert message.startswith('w.pth: weights that are not finite: 2 (0.weight: ')
    assert '(0.weight: 1 NaN and 1 infinite of 6 values, ' in message
    assert '1.running_var: 3 NaN of 3 values)' in message and error.value.exit_code == 2


def test_a_number_that_the_type_of_the_model_does_not_hold_is_not_finite():
    large = checkpoint()
    large.state_dict['0.bias'] = torch.tensor([1.0, 1e300, 2.0], dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r'1 \(0\.bias.*1.*3 values\)'):
        load_strict(tiny(), large)


def test_buffers_that_are_infinite_by_design_and_unused_weights_may_be_infinite():
    model = tiny()
    model.register_buffer('anchors', torch.tensor([0.0, float('inf')]))
    weights = checkpoint(aux_head=torch.tensor([float('nan')]))
    weights.state_dict['anchors'] = torch.tensor([1.0, float('inf')])
    load_strict(model, weights, ('aux',))
    assert model.anchors.tolist() == [1.0, float('inf')]


def test_hooks_after_loading_are_not_called_as_by_mmcvs_loader():
    def halve(module, _):
        with torch.no_grad():
            module.weight.mul_(0.5)

    models, weights = [tiny(), tiny()], checkpoint().state_dict
    for model in models:
        model[0].register_load_state_dict_post_hook(halve)
    load_strict(models[0], checkpoint())
    load_state_dict(models[1], weights)
    assert torch.equal(models[0][0].weight, weights['0.weight'])
    assert torch.equal(models[1][0].weight, weights['0.weight'])
    assert [*models[0][0]._load_state_dict_post_hooks.values()] == [halve]


class Renamed(nn.Linear):
    """A layer that takes the old name of its weight, as mmdet's `FCOSHead` does."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}old' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}old')
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize(
    ('tensor', 'message'),
    [
        (torch.ones(3, 2), ''),
        (torch.full((3, 2), float('nan')), r'not finite: 1 \(0\.weight: 6 NaN of 6'),
        (torch.ones(3, 2, dtype=torch.int8), r'types differ for 1 \(0\.weight: int8 in the file, float32 in'),
        (torch.ones(5, 2), r'shapes differ for 1 \(0\.weight: \(5, 2\) in the file, \(3, 2\)[^;]*$'),
    ],
)
def test_a_tensor_of_an_old_name_is_checked_as_those_of_new_names_are(tensor, message):
    model = nn.Sequential(Renamed(2, 3, bias=False))
    file = Checkpoint('w.pth', {'0.old': tensor}, {})
    if message:
        with pytest.raises(CheckpointError, match=message):
            load_strict(model, file)
    else:
        load_strict(model, file)
        assert torch.equal(model[0].weight, tensor)
    assert not model[0]._load_state_dict_pre_hooks


def test_a_damaged_pickle_is_refused_whatever_its_reader_raises(tmp_path):
    (tmp_path / 'w.pth').write_bytes(b'\x80\x02X\x01')  # a text whose length is cut off: struct.error
    with pytest.raises(CheckpointError, match=r'w\.pth: is not a PyTorch checkpoint, or is truncated'):
        load_checkpoint(tmp_path / 'w.pth')


@pytest.mark.parametrize('wrapped', [True, False])
def test_the_prefix_of_a_parallel_wrapper_goes(wrapped, tmp_path):
    weights = {f'module.{key}': value for key, value in tiny().state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(epoch=3)) if wrapped else weights, tmp_path / 'w.pth')
    loaded = load_checkpoint(tmp_path / 'w.pth')
    load_strict(tiny(), loaded)
    assert loaded.meta == (dict(epoch=3) if wrapped else {}) and loaded.path == str(tmp_path / 'w.pth')


def test_what_is_no_tensor_is_no_weight(tmp_path):
    torch.save({'a': torch.ones(1), 'epoch': 3, '_metadata': {}}, tmp_path / 'w.pth')
    assert list(load_checkpoint(tmp_path / 'w.pth').state_dict) == ['a']


def test_loading_leaves_torchs_own_allow_list_as_it_was(tmp_path):
    torch.serialization.add_safe_globals(numpy_checkpoint_globals())  # as the patch of mmcv does
    before = set(torch.serialization.get_safe_globals())  # torch keeps a set: the list's order is not stable
    torch.save(tiny().state_dict(), tmp_path / 'w.pth')
    load_checkpoint(tmp_path / 'w.pth')
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_file_is_named_also_where_the_message_begins_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'x.weight': torch.ones(1), 'module.x.weight': torch.ones(1)}, 'x')
    with pytest.raises(CheckpointError, match=r'x\.weight.*module\.x\.weight'):
        load_checkpoint('x')


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


def test_the_weights_of_a_scripted_module_are_loaded():
    model = nn.Sequential(torch.jit.script(nn.Linear(2, 3)), nn.BatchNorm1d(3))
    load_strict(model, checkpoint())
    assert all(torch.equal(value, checkpoint().state_dict[key]) for key, value in model.state_dict().items())
