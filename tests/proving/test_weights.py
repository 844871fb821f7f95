"""The model of a proof has the weights of its checkpoint, by name."""

import copy
import dataclasses

import pytest
import torch

from mmdeploy_ext.proving.provenance import differing_weights, weights_checks
from toy_atss import load_toy


def test_a_weight_that_is_not_that_of_the_checkpoint_is_named():
    loaded = load_toy()
    (check,) = weights_checks(loaded)
    assert check.passed and check.name == 'weights of atss_toy.pth'
    other = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    other.model.bbox_head.atss_cls.bias.data += 1e-6
    (check,) = weights_checks(other)
    assert not check.passed and check.detail == 'bbox_head.atss_cls.bias differs'


@pytest.mark.parametrize(
    ('tensors', 'detail'),
    [
        (dict(a=torch.ones(2, dtype=torch.float16), old=torch.zeros(3)), ''),
        (dict(a=torch.ones(2), b=torch.ones(2)), 'b differs'),
        (dict(a=torch.ones(3), b=torch.ones(2)), 'a and 1 more differ'),
        (dict(c=torch.ones(2)), 'no tensor is named like a weight of the model, such as a'),
    ],
)
def test_tensors_of_a_file_are_compared_by_name(tensors, detail):
    assert differing_weights(dict(a=torch.ones(2), b=torch.zeros(2)), tensors) == detail


def test_kernels_of_sparse_convolutions_may_have_another_order_of_axes():
    kernel = torch.rand(3, 3, 3, 2, 4)
    weights = dict(kernel=kernel.permute(4, 0, 1, 2, 3))
    assert differing_weights(weights, dict(kernel=kernel)) == ''
    assert differing_weights(weights, dict(kernel=kernel + 1e-6)) == 'kernel differs'


def test_a_column_of_zeros_for_pillars_of_0_17_is_no_difference():
    weight = torch.arange(1.0, 7).reshape(2, 3)
    wider = torch.cat([weight[:, :2], torch.zeros(2, 1), weight[:, 2:]], 1)
    assert differing_weights(dict(a=wider), dict(a=weight)) == ''
    assert differing_weights(dict(a=wider + 1e-6), dict(a=weight)) == 'a differs'
