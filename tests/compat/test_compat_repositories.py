"""What modules of research repositories need: packages that few models call, attention without CUDA."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdeploy_ext.compat import plain_kernels

REPOSITORY = Path(__file__).resolve().parents[2]
START = f"""
import sys
sys.path.append({str(REPOSITORY)!r})
from mmdeploy_ext import compat
compat.apply()
from mmdeploy_ext.compat.absent_packages import AbsentModule
"""


def run(folder, module, code):
    """Run code in a folder that has `module.py`; the packages are absent, since no site folder is read."""
    (folder / 'module.py').write_text(textwrap.dedent(module))
    text = START + textwrap.dedent(code)
    command = [sys.executable, '-I', '-S', '-c', f'import sys; sys.path.insert(0, {str(folder)!r})\n{text}']
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_users_module_imports_a_package_that_is_absent_and_a_call_says_so(tmp_path):
    module = """
        import aitodpycocotools
        import fvcore.nn.weight_init as weight_init
        from aitodpycocotools.coco import COCO
        from flash_attn.bert_padding import unpad_input
        assert getattr(aitodpycocotools, '__version__', '0') == '0'
    """
    code = """
        import module
        assert isinstance(sys.modules['fvcore.nn'], AbsentModule)
        assert [patch.name for patch in compat.effective()] == ['packages_that_this_model_does_not_call']
        module.unpad_input(1)
    """
    outcome = run(tmp_path, module, code)
    last = outcome.stderr.strip().splitlines()[-1]
    assert re.search(r'AbsentPackageError: .*:\d+ calls flash_attn\.bert_padding\.unpad_input', last)
    assert last.endswith('-m pip install flash-attn')


def test_a_class_that_derives_from_an_absent_one_is_imported_and_no_object_is_made(tmp_path):
    module = """
        from detectron2.modeling import Backbone
        class Mine(Backbone):
            def __init__(self, depth):
                self.depth = depth
    """
    outcome = run(tmp_path, module, 'import module\nprint(module.Mine.__name__)\nmodule.Mine(50)')
    assert outcome.stdout.strip() == 'Mine', outcome.stderr
    assert 'AbsentPackageError' in outcome.stderr.splitlines()[-1]


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
