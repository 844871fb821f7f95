"""What models of research repositories need: attention without CUDA."""

import pytest
import torch
from torch import nn

from mmdeploy_ext.upstream.compat import plain_kernels


def slow_attention(q, kv, scale, causal, mask):
    """Return the attention, a query and a head at a time, in float64."""
    batch, length, heads, _ = q.shape
    keys = kv.shape[1]
    found = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                seen = [
                    s
                    for s in range(keys)
                    if (mask is None or mask[b, s]) and not (causal and s > t + keys - length)
                ]
                scores = torch.stack([(q[b, t, h] * kv[b, s, 0, h]).sum() * scale for s in seen]).double()
                weights = scores.softmax(0)
                found[b, t, h] = sum(weights[i] * kv[b, s, 1, h].double() for i, s in enumerate(seen))
    return found


@pytest.mark.parametrize(('causal', 'masked', 'scale'), [(False, True, None), (True, False, 0.3)])
def test_plain_attention_is_the_slow_one(causal, masked, scale):
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(shape, generator=generator) for shape in ((2, 3, 2, 4), (2, 5, 2, 2, 4)))
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 0]]).bool() if masked else None
    found = plain_kernels.plain_attention(q, kv, scale, causal, mask)
    torch.testing.assert_close(found.double(), slow_attention(q, kv, scale or 0.5, causal, mask))


def flash_attn_unpadded_kvpacked_func(*args):
    raise AssertionError('needs a GPU')


class FlashAttention(nn.Module):
    """As of flash_attn: half precision on a GPU alone."""

    softmax_scale = None

    def forward(self, q, kv, causal=False, key_padding_mask=None):
        assert q.is_cuda
        return flash_attn_unpadded_kvpacked_func(q, kv, causal, key_padding_mask), None


def test_a_module_around_a_kernel_computes_without_it():
    model = nn.Sequential(nn.Linear(2, 2), FlashAttention())
    assert plain_kernels.use_plain_attention(model) == ['FlashAttention']
    assert plain_kernels.use_plain_attention(model) == []
    (note,) = plain_kernels.flash_attention_notes(model)
    assert 'FlashAttention computes by operators of PyTorch' in note
    q, kv = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 2, 1, 4)
    torch.testing.assert_close(model[1](q, kv)[0], q)
