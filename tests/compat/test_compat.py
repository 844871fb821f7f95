"""Every patch: the failure without it, the success with it, and nothing where it is not needed."""

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mmdeploy_ext import compat
from mmdeploy_ext.compat import patches_mmcv
from mmdeploy_ext.compat.import_hook import PATCHES, Patches, patched

torch = pytest.importorskip('torch')
mmcv = pytest.importorskip('mmcv')
REPO = Path(__file__).resolve().parents[2]
APPLY = 'from mmdeploy_ext import compat; compat.apply()\n'
# No patch but the one for torchvision, without which nothing else gets as far as its own failure.
BARE = 'import sys; sys.modules["torchvision._meta_registrations"] = type(sys)("empty")\n'

CODES = dict(
    import_mmcv=(
        'import warnings; warnings.simplefilter("always")\n'
        'import mmcv, mmcv.cnn.bricks.transformer, torchvision.transforms; print("imported")'
    ),
    launch=(
        'import os; os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")\n'
        'from mmcv.runner import init_dist; init_dist("pytorch", backend="gloo")\n'
        'import torch; print(torch.distributed.get_backend(), torch.cuda.device_count())'
    ),
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
    lyft='import mmcv; mmcv.__version__ = "1.7.0"; import mmdet3d.core',
    solo=(
        'import torch; from mmdet.models.dense_heads import solo_head, solov2_head\n'
        'for module in (solo_head, solov2_head):\n'
        '    print(*module.F.interpolate(torch.zeros(1, 0, 4, 4), size=(8, 6), mode="bilinear").shape)'
    ),
)
"""Name -> code that fails with the bare libraries."""
FAILURES = dict(
    import_mmcv='MMCV will release v2.0.0',
    launch='ZeroDivisionError',
    aliases="module 'numpy' has no attribute 'int'",
    regions='INTERNAL ASSERT FAILED',
    panoptic="'NoneType' object is not callable",
    checkpoint='Weights only load failed',
    mmdet3d='MMCV==1.7.2 is used but incompatible',
    lyft="No module named 'lyft_dataset_sdk'",
    solo='Non-empty',
)
"""What they say without the patches: where a library is repaired, its patch can go."""
RESULTS = dict(
    aliases="int64 <class 'bool'> <class 'int'>",
    regions='CheckpointError: RoIAlign: 1 of 1',
    panoptic='2',
    checkpoint='0.5 [0.0, 1.0, 2.0] a',
    mmdet3d='pip install --no-deps lyft_dataset_sdk',
    solo='1 0 8 6',
)
"""What they give with the patches."""
IN_TURN = """
import sys, traceback, warnings
for name, code in {}.items():
    print('==== ' + name, flush=True)
    with warnings.catch_warnings():
        try:
            exec(code, {{}})
        except Exception:
            traceback.print_exc(file=sys.stdout)
    sys.stdout.flush()
    sys.stderr.flush()
"""


def python(code):
    """Run code in a fresh interpreter of the repository; return its output, both streams."""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=REPO,
        text=True,
        env=os.environ | dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def outputs(first):
    """Return name -> output of each code, one after the other in a process of its own."""
    text = python(first + IN_TURN.format(CODES))
    return dict(part.split('\n', 1) for part in text.split('==== ')[1:])


@pytest.mark.matrix
def test_the_bare_libraries_fail():
    said = outputs(BARE)
    for name, failure in FAILURES.items():
        assert failure in said[name], name


@pytest.mark.matrix
def test_a_fresh_process_imports_in_silence_and_starts_without_a_gpu():
    said = outputs(APPLY)
    assert 'imported' in said['import_mmcv'] and said['launch'].split()[-2:] == ['gloo', '0']
    assert 'MMCV will release' not in said['import_mmcv'] and 'has been moved' not in said['import_mmcv']
    for name, result in RESULTS.items():
        assert result in said[name], name


@pytest.mark.parametrize('name', RESULTS)
def test_a_patch_has_its_effect(name, capsys):
    if name == 'mmdet3d':
        pytest.importorskip('spconv')
    try:
        exec(CODES[name], {})
    except Exception as error:
        print(f'{type(error).__name__}: {error}')
    assert RESULTS[name] in capsys.readouterr().out


# ---- the machinery


def test_apply_imports_no_library_and_is_idempotent():
    out = python(
        'import sys; before = list(sys.meta_path)\n'
        + APPLY
        + 'first = compat.apply(); second = compat.apply(); assert first == second\n'
        'print(len(sys.meta_path) - len(before), {"torch", "numpy", "mmcv"} & set(sys.modules))'
    )
    assert out.split() == ['3', 'set()']  # of patches, absent packages and compiled extensions


@pytest.fixture
def toy_module(tmp_path, monkeypatch):
    (tmp_path / 'toy_patched.py').write_text('value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop('toy_patched', None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, 'patches', PATCHES) is PATCHES]


@pytest.mark.parametrize('is_imported_before', [False, True])
def test_a_patch_runs_once_whether_its_module_is_imported_before_or_later(toy_module, is_imported_before):
    patches = Patches()

    @patches.register('toy_patched', versions='toy 1')
    def doubled(module, execute):
        """The value is too small."""
        execute()
        module.value += 1
        return True

    if is_imported_before:
        import toy_patched
    patches.apply()
    import toy_patched

    assert toy_patched.value == 2 and [patch.name for patch in patches.effective()] == ['doubled']


def test_after_patched_a_class_inherits_what_it_inherited_before():
    base = type('Base', (), dict(name=classmethod(lambda cls: cls.__name__)))
    middle = type('Middle', (base,), {})
    with pytest.raises(KeyError), patched(middle, name=lambda: 'patched'):
        assert middle.name() == 'patched'
        raise KeyError
    assert 'name' not in vars(middle) and type('Last', (middle,), {}).name() == 'Last'


# ---- one after the other


def test_scatter_streams_are_asked_for_by_number(monkeypatch):
    from torch.nn.parallel._functions import _get_stream as torchs_own

    with pytest.raises(AttributeError, match=r"'int'.*'type'"):
        torchs_own(0)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: f'stream {device}')
    module = types.SimpleNamespace(_get_stream=torchs_own)
    assert patches_mmcv.scatter_stream_of_int_device(module, lambda: None)
    assert [module._get_stream(index) for index in (0, 1)] == ['stream 0', 'stream 1']


class RunsCode:
    def __reduce__(self):
        return print, ('a checkpoint ran code',)


def test_checkpoints_that_run_code_are_still_refused(tmp_path, capsys):
    from mmcv.runner import load_checkpoint

    torch.save(dict(state_dict={}, meta=RunsCode()), tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'evil.pth'))
    assert 'ran code' not in capsys.readouterr().out


# ---- numbers


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


def test_a_repositorys_class_replaces_one_of_its_name_that_a_library_took_later():
    compat.apply()
    from mmcv.utils import Registry
    from mmdet.models.backbones import EfficientNet

    own, another = (type('EfficientNet', (), dict(__module__='projects.models')) for _ in range(2))
    registry = Registry('backbones')
    registry.register_module(module=EfficientNet)
    registry.register_module(module=own)
    assert registry.get('EfficientNet') is own
    with pytest.raises(KeyError, match='EfficientNet'):
        registry.register_module(module=another)
