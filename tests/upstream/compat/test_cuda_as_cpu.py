"""Code of users that asks for CUDA, on a machine without a GPU."""

import io

import pytest
import torch
from torch import nn

from mmdeploy_ext.upstream.compat import cuda_as_cpu as module
from mmdeploy_ext.upstream.compat.cuda_as_cpu import cuda_as_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA is CUDA where there is a GPU')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer('weight', torch.ones(3, device='cuda:0'))

    def forward(self, x):
        x = x.cuda() + torch.zeros(3, device='cuda') + torch.arange(3).to('cuda', non_blocking=True)
        x = x + x.new_zeros(3, device=torch.cuda.current_device()) + torch.zeros(3).to(device=0)
        torch.cuda.synchronize()
        x = x.to(torch.device('cuda', 0)) * self.weight.type('torch.cuda.FloatTensor')
        return self.layer(x) + torch.cuda.FloatTensor([1.0])


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(module, 'places', {})
    with cuda_as_cpu():
        yield Net().cuda().to('cuda').eval()


@torch.no_grad()
def test_cuda_devices_are_the_cpu_and_the_lines_are_known(model):
    x = torch.rand(2, 3)
    expected = model.layer(x + torch.arange(3)) + 1
    assert torch.equal(model(x), expected)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {'cpu'}
    assert f'{__file__}:{Net.forward.__code__.co_firstlineno + 1}' in module.places
    assert not torch.cuda.is_available()


def test_outside_of_the_block_cuda_is_refused_as_before():
    with cuda_as_cpu():
        torch.zeros(1).cuda()
    for refused in (lambda: torch.zeros(1).cuda(), torch.cuda.current_device):
        with pytest.raises((AssertionError, RuntimeError)):
            refused()


@pytest.mark.parametrize('dynamo', [False, True])
def test_a_model_that_asks_for_cuda_is_exported(model, dynamo):
    import onnx
    import onnxruntime

    x = torch.rand(2, 3)
    if dynamo:
        file = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto.SerializeToString()
    else:
        written = io.BytesIO()
        torch.onnx.export(model, (x,), written, dynamo=False, opset_version=17)
        file = written.getvalue()
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach())
    assert onnx.load_from_string(file).graph.node
