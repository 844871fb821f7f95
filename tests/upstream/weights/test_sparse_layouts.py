"""Kernels of sparse convolutions in the layouts of spconv 1 and 2."""

import dataclasses

import pytest
import torch

from mmdeploy_ext.upstream.weights.sparse_checkpoint import LAYOUTS, Kernel


@pytest.mark.parametrize('source', LAYOUTS)
@pytest.mark.parametrize('target', LAYOUTS)
def test_a_kernel_has_the_shape_of_each_layout_and_comes_back_from_it(source, target):
    kernel = Kernel('weight', (3, 1, 2), 4, 5, target, pointwise=False)
    weight = torch.randn(kernel.shape(source))
    converted = kernel.convert(weight, source)
    assert converted.shape == kernel.shape(target)
    assert torch.equal(dataclasses.replace(kernel, layout=source).convert(converted, target), weight)
