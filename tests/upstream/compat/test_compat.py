"""Patches of the frozen libraries: what code gives that fails without them."""

import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mmdeploy_ext.upstream import compat

torch = pytest.importorskip('torch')
mmcv = pytest.importorskip('mmcv')
REPO = Path(__file__).resolve().parents[3]
CODES = dict(
    aliases='import numpy as np, mmdet; print(np.zeros(1, np.int).dtype, np.bool, np.long)',
    regions=(
        'import torch; from mmcv.ops import RoIAlign\n'
        'RoIAlign(2, 1.0, 2)(torch.ones(1, 1, 4, 4), torch.tensor([[0, float("nan"), 0, 1, 1]]))'
    ),
    panoptic=(
        'import numpy; from mmdet.datasets import coco_panoptic\n'
        'print(len(coco_panoptic.id2rgb(numpy.zeros((2, 2), int))))\n'
    ),
    checkpoint=(
        'import numpy as np, torch\nfrom mmcv.runner import load_checkpoint, save_checkpoint\n'
        'meta = dict(best=np.float64(.5), ap=np.arange(3.), names=np.array(["a"]))\n'
        'import tempfile; path = tempfile.mkdtemp() + "/a.pth"\n'
        'model = torch.nn.Linear(1, 1); save_checkpoint(model, path, meta=meta)\n'
        'got = load_checkpoint(model, path, map_location="cpu")["meta"]\n'
        'print(got["best"], got["ap"].tolist(), got["names"][0])'
    ),
    mmdet3d=(
        'import mmcv, mmdet3d.apis, mmdet3d.models, mmdet3d.datasets as datasets\n'
        'datasets.LyftDataset.__init__.__globals__["Lyft"]()'
    ),
    solo=(
        'import torch; from mmdet.models.dense_heads import solo_head, solov2_head\n'
        'for module in (solo_head, solov2_head):\n'
        '    print(*module.F.interpolate(torch.zeros(1, 0, 4, 4), size=(8, 6), mode="bilinear").shape)'
    ),
    suppression=(
        'import torch; from mmcv.ops.nms import NMSop\n'
        'print(NMSop.forward(None, torch.tensor([[0.0, 0, 4, 4]] * 2), torch.ones(2), 0.5, 0))'
    ),
)
"""Name -> code that fails with the bare libraries."""
RESULTS = dict(
    aliases="int64 <class 'bool'> <class 'int'>",
    regions='CheckpointError: RoIAlign: 1 of 1',
    panoptic='2',
    checkpoint='0.5 [0.0, 1.0, 2.0] a',
    mmdet3d='pip install --no-deps lyft_dataset_sdk',
    solo='1 0 8 6',
    suppression='tensor([0])',
)
"""What they give with the patches."""


@pytest.mark.parametrize('name', RESULTS)
def test_a_patch_has_its_effect(name, capsys):
    if name == 'mmdet3d':
        pytest.importorskip('spconv')
    try:
        exec(CODES[name], {})
    except Exception as error:
        print(f'{type(error).__name__}: {error}')
    assert RESULTS[name] in capsys.readouterr().out


def test_apply_imports_no_library():
    code = 'from mmdeploy_ext.upstream import compat; compat.apply(); import sys; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=REPO, text=True, capture_output=True, check=True)
    assert not {'torch', 'numpy', 'mmcv'} & set(done.stdout.split())


class RunsCode:
    def __reduce__(self):
        return print, ('a checkpoint ran code',)


def test_checkpoints_that_run_code_are_still_refused(tmp_path, capsys):
    from mmcv.runner import load_checkpoint

    torch.save(dict(state_dict={}, meta=RunsCode()), tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'evil.pth'))
    assert 'ran code' not in capsys.readouterr().out


def test_single_thread_reaches_every_openmp_runtime_and_gives_the_threads_back():
    threadpoolctl = pytest.importorskip('threadpoolctl')

    def threads():
        return [lib['num_threads'] for lib in threadpoolctl.threadpool_info() if lib['user_api'] == 'openmp']

    before = torch.get_num_threads(), threads()
    with pytest.raises(KeyError), compat.single_thread():
        assert torch.get_num_threads() == 1 and set(threads()) == {1}
        raise KeyError
    assert (torch.get_num_threads(), threads()) == before


def test_masked_conv_is_that_of_its_definition():
    """At each cell of the mask the sum over the kernel, and zero elsewhere, in plain loops."""
    from mmcv.ops import MaskedConv2d

    torch.manual_seed(0)
    conv = MaskedConv2d(3, 4, 3, padding=1).eval()
    features, mask = torch.randn(1, 3, 5, 6), torch.rand(1, 5, 6) > 0.5
    expected = np.zeros((1, 4, 5, 6))
    padded = np.pad(features[0].double().numpy(), ((0, 0), (1, 1), (1, 1)))
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    for y, x in zip(*np.nonzero(mask[0].numpy()), strict=True):
        for channel in range(4):
            window = padded[:, y : y + 3, x : x + 3]
            expected[0, channel, y, x] = (window * weight[channel]).sum() + bias[channel]
    with torch.no_grad():
        found = [conv(features, given).numpy() for given in (mask, mask.float())]
    for result in found:
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_repositorys_class_replaces_one_of_its_name_of_a_library_or_of_this_package(monkeypatch, tmp_path):
    compat.apply()
    from mmcv.utils import Registry
    from mmdet.models.backbones import EfficientNet

    own, another = (type('EfficientNet', (), dict(__module__='projects.models')) for _ in range(2))
    ours = type('EfficientNet', (), dict(__module__='mmdeploy_ext.upstream.models.efficientnet'))
    copied = type('EfficientNet', (), dict(__module__='mmdet.models.copied'))
    (tmp_path / 'copied.py').touch()
    module = types.ModuleType(copied.__module__)
    module.__file__ = str(tmp_path / 'copied.py')
    monkeypatch.setitem(sys.modules, copied.__module__, module)
    registry = Registry('backbones')
    for kind in (ours, EfficientNet, copied, own):
        registry.register_module(module=kind)
        assert registry.get('EfficientNet') is kind
    with pytest.raises(KeyError, match='EfficientNet'):
        registry.register_module(module=another)
