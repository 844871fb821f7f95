"""What a user's code puts between PyTorch and every model makes inputs decide."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.proving.interceptions import interceptions
from mmdeploy_ext.proving.levels.traced_lines import has_users_code
from mmdeploy_ext.proving.traced_code import lines_of_module


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def doubled(module, inputs, output):
    return output


@pytest.fixture
def global_hook():
    handle = torch.nn.modules.module.register_module_forward_hook(doubled)
    yield 'the global hook doubled'
    handle.remove()


@pytest.fixture
def mode():
    with Doubling():
        yield 'the mode Doubling'


@pytest.fixture
def kernel():
    library = torch.library.Library('aten', 'IMPL')
    library.impl('hardtanh', lambda x, low=-1, high=1: x.clamp(low, high), 'CPU')
    yield 'the kernel of aten::hardtanh'
    library._destroy()


@pytest.fixture
def call(monkeypatch):
    original = torch.nn.Module.__call__

    def call(self, *args, **kwargs):
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, '__call__', call)
    return 'torch.nn.Module.__call__'


@pytest.mark.parametrize('what', ['global_hook', 'mode', 'kernel', 'call'])
def test_what_acts_on_every_model_is_named(request, what):
    layer = torch.nn.ReLU()
    assert interceptions() == [] and not has_users_code(layer)
    name = request.getfixturevalue(what)
    assert interceptions() == [name] and has_users_code(layer)
    inputs = [torch.ones(1, 2)]
    lines = lines_of_module(layer, inputs, inputs, 'torchscript', any_size=False)
    assert f'{name} acts on all that PyTorch computes' in [line.reason for line in lines]
