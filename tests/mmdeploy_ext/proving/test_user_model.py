"""The model of a proof is the user's: config, settings of every module and weights, read once more."""

import contextlib
import copy
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import remembered
from mmdeploy_ext.core import config as core_config
from mmdeploy_ext.exporting import deployment
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.module_settings import settings
from mmdeploy_ext.proving.levels import user_model
from mmdeploy_ext.proving.levels.user_model import (
    first_difference,
    loaded_tensors,
    under_names_of,
    user_model_checks,
    weights_difference,
)
from mmdeploy_ext.weights import checkpoint
from toy_atss import CHECKPOINT, CONFIG


def lower_iou_threshold(cfg):
    cfg.model.test_cfg.nms.iou_threshold = 0.3


def larger_epsilon(model):
    model.bbox_head.cls_convs[0].gn.eps = 1e-3


def larger_anchors(model):
    generator = model.bbox_head.prior_generator
    generator.base_anchors = [anchors * 1.1 for anchors in generator.base_anchors]


def other_class(model):
    model.bbox_head.cls_convs[0].activate = torch.nn.ReLU6()


def larger_maps(model):
    model.neck.register_forward_hook(lambda _, __, maps: tuple(level * 1.05 for level in maps))


def other_forward(model):
    model.neck.forward = model.neck.forward


def moved_bias(content):
    content['state_dict']['bbox_head.atss_cls.bias'] += 0.05


def reversed_names(read):
    read.meta['CLASSES'] = read.meta['CLASSES'][::-1]


def other_channels(cfg):
    cfg.data.test.pipeline[1].transforms[2].to_rgb = False


def after(owner, name, change):
    """Return a context in which `change` alters a copy of the result of a function."""
    right = getattr(owner, name)

    def changed(*args, **settings):
        result = copy.deepcopy(right(*args, **settings))
        change(result)
        return result

    return mock.patch.object(owner, name, changed)


def wherever_it_is_called(module, name, change):
    """Return a context in which `change` alters a copy of the result of a function for all its callers."""
    right, stack = getattr(module, name), contextlib.ExitStack()
    for caller in (module, user_model, deployment):
        if getattr(caller, name, None) is right:
            stack.enter_context(after(caller, name, change))
    return stack


def weights_moved():
    """Return a context in which every family loads a bias that is 0.05 too large."""
    right = Family.load_weights

    def load_weights(self, model, checkpoint):
        right(self, model, checkpoint)
        with torch.no_grad():
            model.bbox_head.atss_cls.bias.add_(0.05)

    return mock.patch.object(Family, 'load_weights', load_weights)


FAULTS = {
    'model.test_cfg.nms.iou_threshold is 0.3': lambda: after(deployment, 'load_config', lower_iou_threshold),
    'data.test': lambda: after(deployment, 'load_config', other_channels),
    'bbox_head.cls_convs.0.gn.eps is 0.001': lambda: after(ImageFamily, 'build', larger_epsilon),
    'bbox_head.prior_generator.base_anchors.0': lambda: after(ImageFamily, 'build', larger_anchors),
    'bbox_head.cls_convs.0.activate is torch.nn.modules.activation.ReLU6': lambda: after(
        ImageFamily, 'build', other_class
    ),
    'bbox_head.atss_cls.bias not as in the file': weights_moved,
    'neck._forward_hooks': lambda: after(ImageFamily, 'build', larger_maps),
    'neck.<methods>.forward': lambda: after(ImageFamily, 'build', other_forward),
    'model.test_cfg.nms.iou_threshold is 0.3, expected 0.6': lambda: wherever_it_is_called(
        core_config, 'read_config', lower_iou_threshold
    ),
    'bbox_head.atss_cls.bias not as in the': lambda: wherever_it_is_called(
        checkpoint, 'read_content', moved_bias
    ),
    "its class names are read as ['cross'": lambda: wherever_it_is_called(
        checkpoint, 'load_checkpoint', reversed_names
    ),
}


@pytest.fixture(autouse=True)
def loaded_anew(monkeypatch):
    monkeypatch.setattr(remembered, 'LOADED', {})


@pytest.mark.suite(
    'model.test_cfg.nms.iou_threshold is 0.3', 'data.test', 'bbox_head.cls_convs.0.gn.eps is 0.001',
    'bbox_head.atss_cls.bias not as in the file', 'neck._forward_hooks', 'neck.<methods>.forward',
    "its class names are read as ['cross'",
)  # fmt: skip
@pytest.mark.parametrize('detail', FAULTS)
def test_a_fault_in_what_file_and_reference_share_is_found(detail):
    with FAULTS[detail]():
        loaded = deployment.load(CONFIG, CHECKPOINT)
    failed = [check.detail for check in user_model_checks(loaded) if not check.passed]
    assert failed and failed[0].startswith(detail), failed


def test_the_model_that_is_loaded_is_the_users():
    loaded = deployment.load(CONFIG, CHECKPOINT, {'model.test_cfg.score_thr': 0.1})
    checks = user_model_checks(loaded)
    assert len(checks) == 3 and all(check.passed for check in checks), checks
    assert user_model_checks(copy.copy(loaded)) == checks  # nothing was changed by them


def test_what_a_run_fills_or_counts_is_no_difference():
    loaded = deployment.load(CONFIG, CHECKPOINT)
    loaded.model.bbox_head.memory = torch.ones(2)
    loaded.model.bbox_head.prior_generator.strides = torch.tensor(
        loaded.model.bbox_head.prior_generator.strides
    )
    assert all(check.passed for check in user_model_checks(loaded))


def in_spconv2(kernel):
    return kernel.permute(4, 0, 1, 2, 3).contiguous()


@pytest.mark.parametrize(
    ('change', 'is_found'),
    [
        (in_spconv2, False),
        (lambda kernel: in_spconv2(kernel).flip(1), True),
        (lambda kernel: in_spconv2(kernel).transpose(1, 3), True),
        (lambda kernel: kernel + 0, False),
    ],
)
def test_kernels_may_have_the_order_of_another_library_and_no_other(change, is_found):
    kernels = {f'{width}': torch.rand(3, 3, 3, width, 4) for width in (2, 4)}
    kernels['one place'] = torch.rand(1, 1, 1, 2, 4)
    weights = {key: change(kernel) for key, kernel in kernels.items() if key != 'one place'}
    weights['one place'] = kernels['one place'].reshape(4, 1, 1, 1, 2)  # spconv reads its memory
    assert bool(weights_difference(weights, kernels)) == is_found


class Renaming(nn.Linear):
    """A layer that loads files of an older version, whose weights had another name."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_weights_that_a_layer_loads_under_another_name_are_compared():
    old = {'0.kernel': torch.rand(2, 2), '0.bias': torch.rand(2), '1.weight': torch.rand(2)}
    tensors = loaded_tensors(nn.Sequential(Renaming(2, 2), nn.BatchNorm1d(2)), old)
    assert torch.equal(tensors['0.weight'], old['0.kernel']) and '1.bias' not in tensors
    weights = {**tensors, '0.weight': old['0.kernel'] + 1}
    assert weights_difference(weights, tensors) == '0.weight not as in the file'


def test_a_backbone_is_below_another_name_in_its_file():
    names = 'conv_input.0.weight', 'layer1.0.conv1.weight', 'layer1.1.conv1.weight', 'layer1.0.bn1.weight'
    tensors = {name: torch.rand((2,) if 'bn' in name else (3, 3, 3, 2, 4)) for name in names}
    weights = {f'pts_encoder.{name}': tensor for name, tensor in tensors.items()}
    for prefix in ('', 'encoders.lidar.backbone.'):
        file = {f'{prefix}{name}': tensor for name, tensor in tensors.items()}
        renamed = under_names_of(weights, {**file, 'head.weight': torch.rand(2)})
        assert weights.keys() == renamed.keys() - {'pts_encoder.head.weight'}
        assert weights_difference(weights, renamed) == ''
        file[f'{prefix}{names[0]}'] = tensors[names[0]].flip(0)
        assert weights_difference(weights, under_names_of(weights, file))
    assert under_names_of(weights, weights) is weights


def test_kernels_have_one_order_in_all_layers():
    kernels = {name: torch.rand(3, 3, 3, 4, 4) for name in 'ab'}
    weights = dict(a=in_spconv2(kernels['a']), b=kernels['b'].permute(3, 0, 1, 2, 4))
    assert weights_difference(weights, kernels) == 'b not as in the file'


def test_settings_of_equal_values_are_equal():
    assert settings([[1, 2]]) == settings(np.array([[1, 2]])) != settings([[1, 3]])
    assert settings(float('nan')) == settings(np.float32('nan'))
    large = np.zeros((40, 40))
    assert settings(large) != settings(large + np.eye(40))


@pytest.mark.parametrize('tensor', [
    torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float8_e4m3fn),
    torch.eye(2).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    torch.ones(2, dtype=torch.complex64)])
def test_tensors_that_numpy_lacks_are_settings(tensor):
    before = settings(tensor)
    assert before == settings(tensor.clone())
    changed = tensor * 1j if tensor.is_complex() else torch.zeros(tensor.shape)
    assert settings(changed) != before


def test_an_entry_that_one_side_lacks_is_named():
    assert first_difference({}, dict(nms=dict(iou=0.5))) == ".nms is missing, expected {'iou': 0.5}"
    assert first_difference(dict(nms=dict(iou=0.5)), dict(nms={})) == '.nms.iou is 0.5, expected nothing'
    assert first_difference([1, [2]], [1, [3]]) == '.1.0 is 2, expected 3'


def test_a_file_without_any_name_of_the_model_has_not_its_weights():
    assert 'none of the names' in weights_difference(dict(a=torch.ones(2)), dict(b=torch.ones(2)))
    assert weights_difference(dict(a=torch.ones(2)), {}) == ''
