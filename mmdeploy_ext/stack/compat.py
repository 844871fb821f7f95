"""All that mmcv-full 1.7.2, mmdet 2.28.2 and mmdet3d 1.0.0rc6 need on today's PyTorch, each with its reason.

`apply()` imports no library: each mend runs when the module that it mends is imported, and looks then whether
it is needed. Call it before the first import of torchvision, mmcv, mmdet or mmdet3d:

    from mmdeploy_ext import compat
    compat.apply()
    import mmdet.apis

It returns all the mends; `effective()` says later which of them had something to do. See `mending.Mend` for
what a mend takes and returns.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdeploy_ext.stack.import_hook import Execute, Mends, patched

_MENDS = Mends()
_mend = _MENDS.register
apply = _MENDS.apply
effective = _MENDS.effective


def _has_gpu() -> bool:
    import torch
    return torch.cuda.is_available()


# ---- torchvision

@_mend('torchvision._meta_registrations', versions='torchvision 0.28.0 for CUDA beside torch 2.13.0 for CPU')
def torchvision_without_operators(module: ModuleType, execute: Execute) -> bool:
    """Without its compiled operators torchvision dies in its import: "torchvision::nms does not exist".

    The public index's wheel is built for CUDA and links libtorch_cuda.so, which a CPU-only torch has not.
    torchvision tolerates that everywhere but in this module, which registers fake kernels for the absent
    operators. The detectors use mmcv's operators, not these.
    """
    extension = sys.modules['torchvision.extension']
    if extension._has_ops():
        execute()
        return False
    return True


# ---- mmcv

@_mend('mmcv', 'mmcv.cnn.bricks.transformer', versions='mmcv-full 1.7.2')
def mmcv_import_warnings(module: ModuleType, execute: Execute) -> bool:
    """At every import mmcv warns that version 2 comes in 2023, and that a class has moved inside it."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='On January 1, 2023, MMCV will release v2.0.0')
        warnings.filterwarnings('ignore', message=r'``\w*MultiScaleDeformableAttention`` has been moved')
        execute()
    return True


@_mend('mmcv.runner.dist_utils', versions='mmcv-full 1.7.2')
def init_dist_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """init_dist takes the rank modulo the number of GPUs: ZeroDivisionError on a machine without one.

    There it sees one GPU while it runs and its choice of the device is skipped; the backend nccl, which every
    OpenMMLab base config names, cannot run there and becomes gloo, with a warning.
    """
    execute()
    if _has_gpu():
        return False
    original = module.init_dist

    @functools.wraps(original)
    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
        import torch
        if backend == 'nccl':
            warnings.warn('no GPU: torch.distributed uses gloo instead of nccl', stacklevel=2)
            backend = 'gloo'
        with patched(torch.cuda, device_count=lambda: 1, set_device=lambda device: None):
            original(launcher, backend=backend, **kwargs)

    module.init_dist = init_dist
    return True


@_mend('mmcv.runner.iter_based_runner', versions='mmcv-full 1.7.2')
def resume_iterations_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """IterBasedRunner.resume puts the checkpoint on the current GPU and asks not whether there is one."""
    execute()
    if _has_gpu():
        return False
    original = module.IterBasedRunner.resume

    @functools.wraps(original)
    def resume(self: Any, checkpoint: str, resume_optimizer: bool = True,
               map_location: str | Callable = 'default') -> None:
        original(self, checkpoint, resume_optimizer, 'cpu' if map_location == 'default' else map_location)

    module.IterBasedRunner.resume = resume
    return True


@_mend('mmcv.parallel._functions', versions='mmcv-full 1.7.2, torch >= 2.1')
def scatter_stream_of_int_device(module: ModuleType, execute: Execute) -> bool:
    """Scatter asks for a copy stream by GPU number; torch 2.1 wants a device: 'int' has no 'type'."""
    execute()
    import torch
    parameter = next(iter(inspect.signature(module._get_stream).parameters.values()))
    if 'device' not in str(parameter.annotation):
        return False
    module._get_stream = functools.cache(torch.cuda.Stream)
    return True


@_mend('mmcv.parallel.distributed', versions='mmcv-full 1.7.2, torch >= 2.0')
def distributed_data_parallel(module: ModuleType, execute: Execute) -> bool:
    """MMDistributedDataParallel.forward reads _use_replicated_tensor_module, which newer torch has not.

    On CPU it also hands DataContainers to the model unopened. train_step and val_step go through torch's own
    forward here, which does the bucket, buffer and unused-parameter work that mmcv repeats by hand for torch
    1.x.
    """
    execute()
    wrapper = module.MMDistributedDataParallel
    if not hasattr(module.DistributedDataParallel, '_inside_ddp_forward'):
        return False

    def run_forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        device = self.device_ids[0] if self.device_ids else -1
        inputs, kwargs = self.to_kwargs(inputs, kwargs, device)
        step = getattr(self.module, self.__dict__.get('_step_name', '__call__'))
        with self._inside_ddp_forward():
            return step(*inputs[0], **kwargs[0])

    def through_forward(name: str) -> Callable:
        def step(self: Any, *inputs: Any, **kwargs: Any) -> Any:
            self._step_name = name
            try:
                return self(*inputs, **kwargs)
            finally:
                del self._step_name
        return step

    wrapper._run_ddp_forward = run_forward
    wrapper.train_step, wrapper.val_step = through_forward('train_step'), through_forward('val_step')
    return True


@_mend('mmcv.runner.checkpoint', versions='mmcv-full 1.7.2, torch >= 2.6')
def numpy_in_checkpoints(module: ModuleType, execute: Execute) -> bool:
    """torch.load (weights_only=True since 2.6) refuses the numpy values in an mmcv checkpoint's `meta`.

    Only what rebuilds numpy scalars and arrays is allowed: checkpoints stay data and cannot run code.
    """
    execute()
    import torch
    torch.serialization.add_safe_globals(numpy_checkpoint_globals())
    return True


def numpy_checkpoint_globals() -> list[Any]:
    """What `torch.load(weights_only=True)` must allow for numpy scalars and arrays, and nothing else.

    Returns:
        Entries for `torch.serialization.add_safe_globals` or `safe_globals`: classes, and pairs of a function
        and its name in the file, once as numpy 1 and once as numpy 2 writes it.
    """
    import numpy as np
    core = np.core if np.lib.NumpyVersion(np.__version__) < '2.0.0' else np._core
    rebuild = [(getattr(core.multiarray, function), f'numpy.{package}.multiarray.{function}')
               for function in ('scalar', '_reconstruct') for package in ('core', '_core')]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?OSU'}
    return [*rebuild, np.ndarray, np.dtype, *sorted(dtypes, key=str)]


@_mend('mmcv.ops.pixel_group', 'mmdet', 'mmdet3d',
       versions='mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6 with numpy >= 1.24')
def numpy_aliases(module: ModuleType, execute: Execute) -> bool:
    """numpy 1.24 removed np.bool, np.int, np.float and np.long; data sets and evaluators use them."""
    import numpy as np
    missing = {name: alias for name, alias in dict(bool=bool, int=int, float=float, long=int).items()
               if name not in vars(np)}
    vars(np).update(missing)
    execute()
    return bool(missing)


# ---- mmdet

@_mend('mmdet.apis.test', 'mmcv.engine.test', versions='mmcv-full 1.7.2, mmdet 2.28.2')
def collect_results_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """collect_results_cpu tells the ranks its temporary folder through a CUDA tensor, also without a GPU."""
    execute()
    if _has_gpu():
        return False
    original = module.collect_results_cpu

    @functools.wraps(original)
    def collect_results_cpu(result_part: list, size: int, tmpdir: str | None = None) -> list | None:
        from torch import distributed as dist
        if tmpdir is None:
            Path('.dist_test').mkdir(exist_ok=True)  # mmcv's own place: on a cluster every node sees it
            box = [tempfile.mkdtemp(dir='.dist_test') if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(box)
            tmpdir = box[0]
        return original(result_part, size, tmpdir)

    module.collect_results_cpu = collect_results_cpu
    return True


@_mend('mmdet.utils.util_distribution', versions='mmdet 2.28.2')
def build_ddp_on_cpu(module: ModuleType, execute: Execute) -> bool:
    """build_ddp asserts that the device is an accelerator, so distributed training with gloo cannot start.

    Its argument broadcast_buffers, deprecated in torch, is not worth a warning per rank.
    """
    execute()
    original = module.build_ddp

    @functools.wraps(original)
    def build_ddp(model: Any, device: str = 'cuda', *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '`broadcast_buffers` is deprecated', FutureWarning)
            if device != 'cpu':
                return original(model, device, *args, **kwargs)
            return module.MMDistributedDataParallel(model, *args, **kwargs | dict(device_ids=None))

    module.build_ddp = build_ddp
    return True


# ---- mmdet3d

@_mend('mmdet3d', versions='mmdet3d 1.0.0rc6 with mmcv-full 1.7.1 and 1.7.2')
def mmdet3d_version_check(module: ModuleType, execute: Execute) -> bool:
    """Importing mmdet3d asserts mmcv <= 1.7.0, though 1.7.1 and 1.7.2 only fixed bugs: it sees 1.7.0 then."""
    import mmcv
    if mmcv.__version__ not in ('1.7.1', '1.7.2'):
        execute()
        return False
    with patched(mmcv, __version__='1.7.0'):
        execute()
    return True


@_mend('mmdet3d.core.evaluation.lyft_eval', 'mmdet3d.datasets.lyft_dataset', versions='mmdet3d 1.0.0rc6')
def mmdet3d_without_lyft(module: ModuleType, execute: Execute) -> bool:
    """mmdet3d imports lyft_dataset_sdk even for nuScenes, and that package pins libraries of 2019.

    Stand-ins let these two modules load. They exist only during the import, and using one raises with the
    command that installs the real package.
    """
    if importlib.util.find_spec('lyft_dataset_sdk') is not None:
        execute()
        return False
    parts = ('eval', 'eval.detection', 'eval.detection.mAP_evaluation',
             'lyftdataset', 'utils', 'utils.data_classes')
    names = ['lyft_dataset_sdk', *(f'lyft_dataset_sdk.{part}' for part in parts)]
    sys.modules.update({name: _StandIn(name) for name in names})
    try:
        execute()
    finally:
        for name in names:
            sys.modules.pop(name, None)
    return True


class _StandIn(ModuleType):
    """A module of an absent package: every name in it is a function that says what is missing."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def absent(*args: object, **kwargs: object) -> None:
            raise ImportError(f'{self.__name__} is not installed: pip install --no-deps lyft_dataset_sdk')
        return absent


# ---- mmdet

@_mend('mmdet.models.dense_heads.solo_head', 'mmdet.models.dense_heads.solov2_head', versions='mmdet 2.28.2')
def instances_all_filtered(module: ModuleType, execute: Execute) -> bool:
    """SOLO's heads raise where the last threshold removes every instance: they resize a stack of no masks."""
    execute()
    functional = module.F

    def interpolate(values: Any, size: Any = None, *args: Any, **options: Any) -> Any:
        if size is not None and values.shape[1] == 0:
            return values.new_zeros((*values.shape[:2], *size))
        return functional.interpolate(values, size, *args, **options)

    module.F = ModuleType('functional')
    module.F.__dict__.update(vars(functional), interpolate=interpolate)
    return True


# ---- spconv

@_mend('spconv.pytorch.cppcore', 'spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_stream_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """The backward pass of spconv asks for the current CUDA stream also on the CPU; it gets 0."""
    execute()
    if _has_gpu():
        return False
    module.get_current_stream = lambda: 0
    return True


@_mend('spconv.pytorch.ops', versions='spconv 2.3.8')
def spconv_one_thread(module: ModuleType, execute: Execute) -> bool:
    """The CPU kernels of spconv race with more than one OpenMP thread, forward and backward: they get one.

    See `single_thread` for what was measured. The other operations of a model keep all threads, and so does
    the CUDA path.
    """
    execute()
    from mmdeploy_ext.stack.compat_sparse import one_thread_on_cpu
    for name in ('get_indice_pairs', 'indice_conv', 'indice_conv_backward', 'indice_maxpool',
                 'indice_maxpool_backward'):
        setattr(module, name, one_thread_on_cpu(getattr(module, name)))
    return True


@_mend('spconv.pytorch.conv', versions='spconv 2.3.8')
def spconv_convolution_on_cpu(module: ModuleType, execute: Execute) -> bool:
    """On the CPU spconv refuses a bias and an activation, which come after it here, and an empty sweep."""
    execute()
    from mmdeploy_ext.stack.compat_sparse import convolution_on_cpu, gradient_on_cpu
    ops = module.ops
    ops.indice_conv = convolution_on_cpu(ops.indice_conv, module._apply_act)
    ops.indice_conv_backward = gradient_on_cpu(ops.indice_conv_backward)
    return True


@_mend('spconv.pytorch.core', versions='spconv 2.3.8, torch >= 2.9')
def spconv_dense_by_tuple(module: ModuleType, execute: Execute) -> bool:
    """SparseConvTensor.dense indexes by a list of tensors: torch warns that it will mean something else."""
    execute()

    def scatter_nd(indices: Any, updates: Any, shape: list[int]) -> Any:
        where = indices.reshape(-1, indices.shape[-1]).unbind(1)
        values = updates.reshape(-1, *shape[len(where):])
        return updates.new_zeros(shape).index_put(where, values)

    module.scatter_nd = scatter_nd
    return True


@_mend('spconv.pytorch.core', versions='spconv 2.3.8, torch 2.13.0')
def spconv_without_tracing_warning(module: ModuleType, execute: Execute) -> bool:
    """SparseConvTensor is traceable by torch.fx, which warns users of `is_fx_tracing` on stderr, once.

    Every process that made a sparse tensor printed it. The one warning is spent here, unseen.
    """
    execute()
    from torch.fx import _symbolic_trace
    warn = getattr(_symbolic_trace, 'is_fx_tracing_warning', None)
    if warn is None:
        return False
    disabled, _symbolic_trace.log.disabled = _symbolic_trace.log.disabled, True
    try:
        warn()
    finally:
        _symbolic_trace.log.disabled = disabled
    return True


@_mend('mmcv.ops.scatter_points', versions='mmcv-full 1.7.2')
def dynamic_scatter_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """DynamicScatter, the mean of dynamic voxels, has only a CUDA kernel; the CPU gets torch's operators."""
    execute()
    from mmdeploy_ext.stack.compat_sparse import dynamic_scatter_on_cpu
    original = module.dynamic_scatter

    def dynamic_scatter(feats: Any, coors: Any, reduce_type: str = 'max') -> tuple:
        function = original if feats.is_cuda else dynamic_scatter_on_cpu
        return function(feats, coors, reduce_type)

    module.dynamic_scatter = dynamic_scatter
    return True


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Runs its body with one OpenMP thread in every loaded runtime; spconv 2.3.8 on CPU needs it.

    With more threads it has a race: 4 of 27,774 rows of a convolution were wrong, others in each run (one
    thread: within 1e-7, and faster). It brings an OpenMP runtime of its own, so torch.set_num_threads alone
    does not reach it.
    """
    import torch
    from threadpoolctl import threadpool_limits
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api='openmp'):
            yield
    finally:
        torch.set_num_threads(threads)
