"""Every patch: the failure without it, the success with it, and nothing where it is not needed."""

import functools
import importlib.util
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mmdeploy_ext import compat
from mmdeploy_ext.compat import patches_mmcv, patches_mmdet, patches_spconv
from mmdeploy_ext.compat.import_hook import PATCHES, Patches, patched
from rank_processes import run_ranks

torch = pytest.importorskip('torch')
mmcv = pytest.importorskip('mmcv')
REPO = Path(__file__).resolve().parents[2]
APPLY = 'from mmdeploy_ext import compat; compat.apply()\n'
# No patch but the one for torchvision, without which nothing else gets as far as its own failure.
BARE = 'import sys; sys.modules["torchvision._meta_registrations"] = type(sys)("empty")\n'
# Of the bare interpreter, by a child that has its torch: the error of the import that `BARE` is for.
TORCHVISION = """
import os, sys, traceback, torch
if not os.fork():
    try:
        import torchvision
    except Exception:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    os._exit(0)
os.wait()
print()
"""
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason='this patch is for machines without a GPU')


def python(code, *, check=True, timeout=120):
    """Runs code in a fresh interpreter of the repository; returns its output, both streams."""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=REPO,
        text=True,
        env=os.environ | dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    assert check is None or (done.returncode == 0) == check, done.stdout[-3000:]
    return done.stdout


# Codes of tests below: each is run in an interpreter with the patches, and in one with the bare libraries.
CODES = {}
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


FRESH = 'import', 'start', 'launch'
"""Codes about imports and warnings, which need an interpreter of their own with the patches, too."""


def forked(codes, path):
    """Run codes in turn in a child of this process, which has the patches; return what they print."""
    if not os.fork():
        try:
            sys.stdout = sys.stderr = path.open('w')
            os.environ['CUDA_VISIBLE_DEVICES'] = ''
            exec(IN_TURN.format(codes), {})
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.wait()
    return path.read_text()


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
    """Return name of a code -> (its output with the bare libraries, its output with the patches)."""
    own = {name: CODES[name] for name in FRESH}
    others = {name: code for name, code in CODES.items() if name not in own}
    patched_text = python(APPLY + IN_TURN.format(own)) + forked(others, tmp_path_factory.mktemp('out') / 'a')
    texts = [python(TORCHVISION + BARE + IN_TURN.format(CODES)), patched_text]
    parts = [dict(part.split('\n', 1) for part in text.split('==== ')[1:]) for text in texts]
    torchvision = [text.split('==== ')[0] for text in texts]
    return {name: tuple(part[name] for part in parts) for name in CODES} | dict(torchvision=torchvision)


# ---- the machinery


def test_apply_imports_no_library_and_is_idempotent():
    out = python(
        'import sys; before = list(sys.meta_path)\n'
        + APPLY
        + 'first = compat.apply(); second = compat.apply(); assert first == second\n'
        'print(len(sys.meta_path) - len(before), {"torch", "numpy", "mmcv"} & set(sys.modules))'
    )
    assert out.split() == ['2', 'set()']  # of patches, and of absent packages


def test_every_patch_states_reason_and_versions():
    patches = compat.apply()
    assert len(patches) == len({patch.name for patch in patches}) > 20
    for patch in patches:
        assert len(patch.reason) > 40 and any(char.isdigit() for char in patch.versions) and patch.modules


@pytest.fixture
def toy_module(tmp_path, monkeypatch):
    (tmp_path / 'toy_patched.py').write_text('value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield 'toy_patched'
    sys.modules.pop('toy_patched', None)
    sys.meta_path[:] = [
        f
        for f in sys.meta_path
        if not isinstance(getattr(f, 'patches', None), Patches) or f.patches is PATCHES
    ]


def make_patches():
    patches = Patches()

    @patches.register('toy_patched', versions='toy 1')
    def doubled(module, execute):
        """The value is too small."""
        execute()
        module.value = getattr(module, 'value', 0) + 1
        return True

    return patches


def test_a_patch_runs_once_at_import_and_leaves_the_real_loader(toy_module):
    patches = make_patches()
    patches.apply()
    assert patches.effective() == []
    import toy_patched

    assert toy_patched.value == 2 and [patch.name for patch in patches.effective()] == ['doubled']
    assert type(toy_patched.__spec__.loader).__name__ == 'SourceFileLoader'


def test_a_patch_runs_on_a_module_that_was_imported_before(toy_module):
    import toy_patched

    make_patches().apply()
    assert toy_patched.value == 2


def test_after_patched_a_class_inherits_what_it_inherited_before():
    base = type('Base', (), dict(name=classmethod(lambda cls: cls.__name__)))
    middle = type('Middle', (base,), {})
    with patched(middle, name=lambda: 'patched'):
        assert middle.name() == 'patched'
    assert 'name' not in vars(middle) and type('Last', (middle,), {}).name() == 'Last'


def test_patched_restores_after_an_error():
    target = types.SimpleNamespace(a=1)
    with pytest.raises(KeyError), patched(target, a=2):
        assert target.a == 2
        raise KeyError
    assert target.a == 1


# ---- one after the other


def has_torchvision_operators():
    import torchvision

    return torchvision.extension._has_ops()


@pytest.mark.skipif('has_torchvision_operators()', reason='this torchvision has its operators')
def test_torchvision_without_operators_imports(outputs):
    assert 'operator torchvision::nms does not exist' in outputs['torchvision'][0]
    assert 'imported' in outputs['import'][1]


def test_torchvision_with_operators_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision.extension', types.SimpleNamespace(_has_ops=lambda: True))
    ran = []
    assert patches_mmcv.torchvision_without_operators(types.ModuleType('m'), lambda: ran.append(1)) is False
    assert ran == [1]


CODES['import'] = (
    'import numpy, warnings; print(hasattr(numpy, "int")); warnings.simplefilter("always")\n'
    'import mmcv, mmcv.cnn.bricks.transformer, torchvision.transforms; print("imported")'
)


def test_importing_mmcv_and_mmdet_warns_nothing_of_its_own(outputs):
    bare, patched = outputs['import']
    assert 'MMCV will release v2.0.0' in bare and 'imported' in patched
    assert 'MMCV will release' not in patched and 'has been moved' not in patched


CODES['aliases'] = 'import numpy as np, mmdet; print(np.zeros(1, np.int).dtype, np.bool, np.long)'


def test_numpy_aliases_come_back_for_mmdet_only(outputs):
    bare, patched = outputs['aliases']
    assert outputs['import'][1].splitlines()[0] == 'False'
    assert patched.splitlines()[0] == "int64 <class 'bool'> <class 'int'>"
    assert "module 'numpy' has no attribute 'int'" in bare


CODES['regions'] = (
    'import torch; from mmcv.ops import RoIAlign\n'
    'RoIAlign(2, 1.0, 2)(torch.ones(1, 1, 4, 4), torch.tensor([[0, float("nan"), 0, 1, 1]]))'
)


def test_regions_without_numbers_are_named_in_place_of_an_internal_assertion(outputs):
    bare, patched = outputs['regions']
    assert 'INTERNAL ASSERT FAILED' in bare
    assert 'RoIAlign: 1 of 1 regions have coordinates that are no finite numbers' in patched


CODES['start'] = (
    'import sys, mmdet.models; from mmdet.models.dense_heads import paa_head\n'
    'from mmdet.core.bbox.assigners import hungarian_assigner\n'
    'from mmdet.core.visualization import image\n'
    'print({"torch._dynamo", "sklearn", "scipy", "matplotlib"} & set(sys.modules))\n'
    'print(hungarian_assigner.linear_sum_assignment([[2, 1], [1, 3]])[1].tolist(), image.plt.cm.jet(0)[2],\n'
    '      image.Polygon([(0, 0), (1, 0), (0, 2)]).get_xy().max())\n'
    'print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("meta"))\n'
    'print(type(paa_head.skm.GaussianMixture(2)).__module__)'
)


def test_libraries_that_few_models_call_are_imported_when_they_are_called(outputs):
    bare, patched = outputs['start']
    found = bare.splitlines()[-3:]
    assert found[0] == '[1, 0] 0.5 2.0'
    assert found[1] in ('True', 'False') and found[2] == 'sklearn.mixture._gaussian_mixture'
    assert 'torch._dynamo' in bare and patched.splitlines()[-4:] == ['set()', *found]


def test_what_draws_and_reads_tables_is_imported_when_its_names_are_looked_up(monkeypatch):
    import pandas

    pytest.importorskip('mmdet3d')
    from mmdet3d.datasets import lyft_dataset

    for name in [name for name in sys.modules if name.partition('.')[0] == 'pandas']:
        monkeypatch.delitem(sys.modules, name)
    module = types.ModuleType(lyft_dataset.__name__)
    run = functools.partial(exec, 'import pandas as pd', vars(module))
    assert patches_mmdet.libraries_that_few_models_call(module, run)
    assert 'pandas' not in sys.modules and module.pd is not pandas
    monkeypatch.setitem(sys.modules, 'pandas', pandas)
    assert module.pd.DataFrame is pandas.DataFrame and not hasattr(module.pd, '__missing__')


RANK_0 = 'import os\nos.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")\n'
CODES['launch'] = (
    RANK_0 + 'from mmcv.runner import init_dist\ninit_dist("pytorch")\n'
    'import torch; print(torch.distributed.get_backend(), torch.cuda.device_count())'
)


def test_init_dist_works_without_a_gpu(outputs):
    bare, out = outputs['launch']
    assert 'ZeroDivisionError' in bare and 'gloo instead of nccl' in out and out.split()[-2:] == ['gloo', '0']


@NO_GPU
def test_a_run_by_iterations_resumes_without_a_gpu(tmp_path):
    import logging

    from mmcv.runner import IterBasedRunner

    model = torch.nn.Linear(1, 1)
    model.train_step = lambda: None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = dict(optimizer=optimizer, logger=logging.getLogger('resume'), max_iters=9)
    runner = IterBasedRunner(model, work_dir=str(tmp_path), **options)
    runner._iter = 4
    runner.save_checkpoint(str(tmp_path), create_symlink=False)
    again = IterBasedRunner(model, **options)
    with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
        IterBasedRunner.resume.__wrapped__(again, str(tmp_path / 'iter_5.pth'))
    again.resume(str(tmp_path / 'iter_5.pth'))
    assert again.iter == 4


def test_scatter_streams_are_asked_for_by_number(monkeypatch):
    from mmcv.parallel import _functions
    from torch.nn.parallel._functions import _get_stream as torchs_own

    with pytest.raises(AttributeError, match=r"'int'.*'type'"):
        torchs_own(0)
    made = []
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: made.append(device) or f'stream {device}')
    module = types.SimpleNamespace(_get_stream=torchs_own)
    assert patches_mmcv.scatter_stream_of_int_device(module, lambda: None)
    assert [module._get_stream(i) for i in (0, 0, 1)] == ['stream 0', 'stream 0', 'stream 1']
    assert made == [0, 1]
    assert _functions._get_stream is not torchs_own


WORKER = Path(__file__).parent / 'ddp_worker.py'


@pytest.mark.matrix
@NO_GPU
def test_two_gloo_processes_test_and_train_with_mmdets_own_loops(tmp_path):
    """init_dist, build_ddp, MMDistributedDataParallel, collect_results_cpu and the runner, together."""
    ended = run_ranks(tmp_path, [[WORKER, tmp_path]] * 2)
    out = ''.join(out + error for _, out, error in ended)
    assert [code for code, _, _ in ended] == [0, 0], out
    results = pickle.loads((tmp_path / 'results.pkl').read_bytes())
    weights = pickle.loads((tmp_path / 'weights.pkl').read_bytes())
    assert results == [0.0, 16.0, 32.0, 48.0, 64.0], out
    # gradient of the mean over the samples of both ranks, so both have the same weights after each step
    assert weights[0] == weights[1] and weights[0] != 0
    assert 'is deprecated' not in out


CODES['panoptic'] = (
    'from mmdet.datasets import coco_panoptic\nfrom mmdet.datasets.pipelines import LoadPanopticAnnotations\n'
    'print(len(coco_panoptic.id2rgb(LoadPanopticAnnotations and __import__("numpy").zeros((2, 2), int))))\n'
)


@pytest.mark.skipif(importlib.util.find_spec('panopticapi') is not None, reason='panopticapi is installed')
def test_panoptic_data_sets_are_read_without_panopticapi(outputs):
    bare, patched_ = outputs['panoptic']
    assert "'NoneType' object is not callable" in bare and patched_.split() == ['2']


CODES['ddp'] = (
    RANK_0 + 'import torch\ntorch.distributed.init_process_group("gloo")\n'
    'from mmcv.parallel import MMDistributedDataParallel\n'
    'MMDistributedDataParallel(torch.nn.Linear(1, 1))(torch.ones(1, 1))'
)


@NO_GPU
def test_without_the_patches_the_same_parts_fail(outputs):
    from mmdet.apis.test import collect_results_cpu
    from mmdet.utils import build_ddp

    with pytest.raises(AssertionError, match='Only available for cuda'):
        build_ddp.__wrapped__(torch.nn.Linear(1, 1), 'cpu')
    with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
        collect_results_cpu.__wrapped__([1], 1)
    assert '_use_replicated_tensor_module' in outputs['ddp'][0]


CODES['checkpoint'] = (
    'import numpy as np, torch\nfrom mmcv.runner import load_checkpoint, save_checkpoint\n'
    'meta = dict(best=np.float64(.5), loss=np.float32(.25), epochs=np.int64(3),\n'
    '            ap=np.arange(3.), names=np.array(["a"]))\n'
    'import tempfile; path = tempfile.mkdtemp() + "/a.pth"\n'
    'model = torch.nn.Linear(1, 1); save_checkpoint(model, path, meta=meta)\n'
    'got = load_checkpoint(model, path, map_location="cpu")["meta"]\n'
    'assert got["best"] == .5 and got["ap"].tolist() == [0, 1, 2] and got["names"][0] == "a"\n'
    'print("ok")'
)


def test_checkpoints_with_numpy_values_load_as_data(outputs):
    bare, patched = outputs['checkpoint']
    assert 'Weights only load failed' in bare and patched.split()[-1] == 'ok'


class RunsCode:
    def __reduce__(self):
        return print, ('a checkpoint ran code',)


def test_checkpoints_that_run_code_are_still_refused(tmp_path, capsys):
    from mmcv.runner import load_checkpoint

    torch.save(dict(state_dict={}, meta=RunsCode()), tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'evil.pth'))
    assert 'ran code' not in capsys.readouterr().out


def test_numpy_names_of_both_major_versions_are_allowed():
    names = {entry[1] for entry in compat.numpy_checkpoint_globals() if isinstance(entry, tuple)}
    assert names == {
        f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('scalar', '_reconstruct')
    }


CODES['mmdet3d'] = (
    'import sys, mmcv, mmdet3d.apis, mmdet3d.models, mmdet3d.datasets as datasets\n'
    'print(mmcv.__version__, any("lyft_dataset_sdk" in name for name in sys.modules))\n'
    'datasets.LyftDataset.__init__.__globals__["Lyft"]()'
)
CODES['lyft'] = 'import mmcv; mmcv.__version__ = "1.7.0"; import mmdet3d.core'


def test_mmdet3d_imports_beside_mmcv_1_7_2_and_without_lyft(outputs):
    pytest.importorskip('spconv')
    check, out = outputs['mmdet3d']
    assert 'MMCV==1.7.2 is used but incompatible' in check
    assert "No module named 'lyft_dataset_sdk'" in outputs['lyft'][0]
    assert 'calls lyft_dataset_sdk.lyftdataset.Lyft' in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith('pip install --no-deps lyft_dataset_sdk')
    assert '1.7.2 False' in out


# ---- spconv


@pytest.fixture
def sparse_conv():
    sp = pytest.importorskip('spconv.pytorch')
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(12**3, generator=generator)[:400]
    indices = torch.stack([torch.zeros_like(cells), cells // 144, cells // 12 % 12, cells % 12], 1)
    features = torch.randn(len(cells), 4, generator=generator)
    conv = sp.SubMConv3d(4, 3, 3, bias=False, algo=sp.ConvAlgo.Native)
    return sp, conv, indices, features


@NO_GPU
def test_spconv_single_thread_equals_dense_convolution_forward_and_backward(sparse_conv):
    sp, conv, indices, features = sparse_conv
    grad = torch.randn(len(indices), 3, generator=torch.Generator().manual_seed(1))
    at = tuple(indices.long().t())

    sparse_in = features.clone().requires_grad_()
    with compat.single_thread():
        out = conv(sp.SparseConvTensor(sparse_in, indices.int(), [12] * 3, 1)).features
        out.backward(grad)

    dense_in = features.clone().requires_grad_()
    dense = torch.zeros(1, 12, 12, 12, 4).index_put(at, dense_in).permute(0, 4, 1, 2, 3)
    weight = conv.weight.detach().permute(0, 4, 1, 2, 3)  # KRSC
    expected = torch.nn.functional.conv3d(dense, weight, padding=1).permute(0, 2, 3, 4, 1)[at]
    expected.backward(grad)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse_in.grad, dense_in.grad, rtol=0, atol=1e-5)


@NO_GPU
def test_spconv_backward_without_the_patch_asks_for_a_cuda_stream():
    from spconv.pytorch import cppcore

    assert cppcore.get_current_stream() == 0
    module = types.SimpleNamespace(get_current_stream='original')
    with patched(torch.cuda, is_available=lambda: True):
        assert patches_spconv.spconv_stream_without_gpu(module, lambda: None) is False
    assert module.get_current_stream == 'original'
    with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
        torch.cuda.current_stream()


def test_single_thread_reaches_every_openmp_runtime_and_gives_the_threads_back():
    threadpoolctl = pytest.importorskip('threadpoolctl')

    def threads():
        return [lib['num_threads'] for lib in threadpoolctl.threadpool_info() if lib['user_api'] == 'openmp']

    before = torch.get_num_threads(), threads()
    with pytest.raises(KeyError), compat.single_thread():
        assert torch.get_num_threads() == 1 and set(threads()) == {1}
        raise KeyError
    assert (torch.get_num_threads(), threads()) == before


# ---- all together


def test_masked_conv_is_that_of_its_definition():
    """At each cell of the mask the sum over the kernel, and zero elsewhere, in plain loops."""
    import numpy as np
    import torch
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
        np.testing.assert_array_equal(conv(features).numpy(), super(MaskedConv2d, conv).forward(features))
        with pytest.raises(ValueError, match='expected those of one image'):
            conv(features.expand(2, -1, -1, -1), mask)
    for result in found:
        np.testing.assert_allclose(result, expected, atol=1e-6)
        assert not result[:, :, ~mask[0].numpy()].any()


def test_mmdets_atss_runs_forward_and_get_bboxes():
    import mmdet
    from mmcv.utils import Config
    from mmdet.models import build_detector

    cfg = Config.fromfile(str(Path(mmdet.__file__).parent / '.mim/configs/atss/atss_r50_fpn_1x_coco.py'))
    assert 'ATSSHead' in cfg.pretty_text  # goes through yapf
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.score_thr = 0.0
    torch.manual_seed(0)
    detector = build_detector(cfg.model).eval()
    meta = dict(img_shape=(64, 96, 3), ori_shape=(64, 96, 3), pad_shape=(64, 96, 3), scale_factor=1.0)
    with torch.no_grad():
        [result] = detector(return_loss=False, img=[torch.randn(1, 3, 64, 96)], img_metas=[[meta]])
    assert len(result) == 80 and sum(map(len, result)) == 100


# ---- mmdet's SOLO heads

CODES['solo'] = """
import torch
from mmdet.models.dense_heads import solo_head, solov2_head
for module in (solo_head, solov2_head):
    print(tuple(module.F.interpolate(torch.zeros(1, 0, 4, 4), size=(8, 6), mode='bilinear').shape),
          tuple(module.F.interpolate(torch.zeros(1, 2, 4, 4), scale_factor=2).shape), module.F.relu.__name__)
"""


def test_solo_heads_survive_an_image_without_results(outputs):
    bare, patched = outputs['solo']
    assert 'RuntimeError' in bare and 'Non-empty' in bare
    assert patched.splitlines()[-2:] == ['(1, 0, 8, 6) (1, 2, 8, 8) relu'] * 2
