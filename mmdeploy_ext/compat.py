"""All that mmcv-full 1.7.2, mmdet 2.28.2 and mmdet3d 1.0.0rc6 need on today's PyTorch, each with its reason.

`apply()` costs nothing: it imports no library, it only asks to be called when one of the modules below is imported, and
the mend then looks whether it is needed. Call it before the first import of torchvision, mmcv, mmdet or mmdet3d.

    from mmdeploy_ext import compat
    compat.apply()
    import mmdet.apis

A mend takes the module that is being imported and `execute`, which runs the module's own code, and returns whether it
changed anything. For a module that was imported before `apply()`, `execute` does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Execute = Callable[[], None]
MendFunction = Callable[[ModuleType, Execute], bool]


@dataclass(frozen=True)
class Mend:
    """One repair of one library: what it is called, why, and for which versions it was tried."""

    name: str
    reason: str
    versions: str
    modules: tuple[str, ...]
    function: MendFunction


_MENDS: dict[str, Mend] = {}
_EFFECTIVE: dict[str, set[str]] = {}


def _mend(*modules: str, versions: str) -> Callable[[MendFunction], MendFunction]:
    """Registers a function as the mend that runs when one of `modules` is imported."""
    def register(function: MendFunction) -> MendFunction:
        reason = ' '.join(inspect.getdoc(function).split('\n\n')[0].split())
        _MENDS[function.__name__] = Mend(function.__name__, reason, versions, modules, function)
        return function
    return register


def apply() -> list[Mend]:
    """Makes every mend happen when its library is imported, and now for libraries that already are.

    Returns:
        The mends, in the order of this file; calling it again changes nothing. `effective()` says later which of them
        had something to do.
    """
    if not any(isinstance(finder, _MendingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MendingFinder())
        for name in [m for mend in _MENDS.values() for m in mend.modules if m in sys.modules]:
            _run_mends(sys.modules[name], lambda: None)
    return list(_MENDS.values())


def effective() -> list[Mend]:
    """The mends that changed something in this process so far."""
    return [mend for name, mend in _MENDS.items() if _EFFECTIVE.get(name)]


def _run_mends(module: ModuleType, execute: Execute) -> None:
    """Executes a module inside all the mends that name it; each runs at most once per module."""
    def wrap(mend: Mend, inner: Execute) -> Execute:
        def run() -> None:
            if mend.function(module, inner):
                _EFFECTIVE.setdefault(mend.name, set()).add(module.__name__)
        return run
    for mend in _MENDS.values():
        if module.__name__ in mend.modules and module.__name__ not in _EFFECTIVE.get(mend.name, ()):
            execute = wrap(mend, execute)
    execute()


class _MendingLoader(importlib.abc.Loader):
    """Stands before a module's loader for its one execution."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (get_source, is_package, ... of the real loader)
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its real loader back, then runs it inside its mends."""
        module.__spec__.loader = module.__loader__ = self._loader
        _run_mends(module, functools.partial(self._loader.exec_module, module))


class _MendingFinder(importlib.abc.MetaPathFinder):
    """Finds a module as the finders after this one do, and puts `_MendingLoader` before it if a mend names it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if not any(fullname in mend.modules for mend in _MENDS.values()):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _MendingLoader(spec.loader)
                return spec
        return None


def _has_gpu() -> bool:
    import torch
    return torch.cuda.is_available()


# ---------------------------------------------------------------------------------------------------- torchvision

@_mend('torchvision._meta_registrations', versions='torchvision 0.28.0 for CUDA beside torch 2.13.0 for CPU')
def torchvision_without_operators(module: ModuleType, execute: Execute) -> bool:
    """torchvision's import dies with "operator torchvision::nms does not exist" when its compiled operators do not load.

    The wheel of the public index is built for CUDA and links libtorch_cuda.so, which a CPU-only torch has not; torchvision tolerates that
    everywhere but in this module, which registers fake kernels for the absent operators. The detectors use mmcv's operators.
    """
    extension = sys.modules['torchvision.extension']
    if extension._has_ops():
        execute()
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- mmcv

@_mend('mmcv', 'mmcv.cnn.bricks.transformer', versions='mmcv-full 1.7.2')
def mmcv_import_warnings(module: ModuleType, execute: Execute) -> bool:
    """mmcv warns at every import that version 2 comes in 2023 and that a class has moved inside mmcv itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='On January 1, 2023, MMCV will release v2.0.0')
        warnings.filterwarnings('ignore', message=r'``\w*MultiScaleDeformableAttention`` has been moved')
        execute()
    return True


@_mend('mmcv.runner.dist_utils', versions='mmcv-full 1.7.2')
def init_dist_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """mmcv's init_dist takes the rank modulo the number of GPUs: ZeroDivisionError on a machine without one.

    There it is told that there is one GPU while it runs and the choice of the device is skipped; the backend nccl, which every OpenMMLab base config
    names, cannot run there and becomes gloo, with a warning.
    """
    execute()
    if _has_gpu():
        return False
    original = module.init_dist

    @functools.wraps(original)
    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:  # noqa: ANN401
        import torch
        if backend == 'nccl':
            warnings.warn('no GPU: torch.distributed uses gloo instead of nccl', stacklevel=2)
            backend = 'gloo'
        with _patched(torch.cuda, device_count=lambda: 1, set_device=lambda device: None):
            original(launcher, backend=backend, **kwargs)

    module.init_dist = init_dist
    return True


@_mend('mmcv.parallel._functions', versions='mmcv-full 1.7.2, torch >= 2.1')
def scatter_stream_of_int_device(module: ModuleType, execute: Execute) -> bool:
    """mmcv's Scatter asks torch for a copy stream by GPU number; since 2.1 torch wants a torch.device ('int' has no 'type')."""
    execute()
    import torch
    parameter = next(iter(inspect.signature(module._get_stream).parameters.values()))
    if 'device' not in str(parameter.annotation):
        return False
    module._get_stream = functools.cache(torch.cuda.Stream)
    return True


@_mend('mmcv.parallel.distributed', versions='mmcv-full 1.7.2, torch >= 2.0')
def distributed_data_parallel(module: ModuleType, execute: Execute) -> bool:
    """MMDistributedDataParallel reads _use_replicated_tensor_module, which torch 2.0 removed, and on CPU it hands DataContainers to the model unopened.

    train_step and val_step go through torch's own forward here, which does the bucket, buffer and unused-parameter work that
    mmcv repeats by hand for torch 1.x.
    """
    execute()
    wrapper = module.MMDistributedDataParallel
    if hasattr(module.DistributedDataParallel, '_use_replicated_tensor_module'):
        return False

    def run_forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        device = self.device_ids[0] if self.device_ids else -1
        inputs, kwargs = self.to_kwargs(inputs, kwargs, device)
        step = getattr(self.module, self.__dict__.get('_step_name', '__call__'))
        with self._inside_ddp_forward():
            return step(*inputs[0], **kwargs[0])

    def through_forward(name: str) -> Callable:
        def step(self: Any, *inputs: Any, **kwargs: Any) -> Any:  # noqa: ANN401
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
    """torch.load refuses numpy values since 2.6 (weights_only=True), and mmcv checkpoints carry some in `meta`, such as the best score.

    Only the functions that rebuild numpy scalars and arrays are allowed; checkpoints stay data and cannot run code.
    """
    execute()
    import torch
    torch.serialization.add_safe_globals(numpy_checkpoint_globals())
    return True


def numpy_checkpoint_globals() -> list[Any]:
    """What `torch.load(weights_only=True)` has to allow so that numpy scalars and arrays load, and nothing else.

    Returns:
        Entries for `torch.serialization.add_safe_globals` or `safe_globals`: classes, and (function, name in the file) pairs
        for the names of numpy 1 and numpy 2.
    """
    import numpy as np
    core = np.core if np.lib.NumpyVersion(np.__version__) < '2.0.0' else np._core
    rebuild = [(getattr(core.multiarray, function), f'numpy.{package}.multiarray.{function}')
               for function in ('scalar', '_reconstruct') for package in ('core', '_core')]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'}
    return [*rebuild, np.ndarray, np.dtype, *sorted(dtypes, key=str)]


@_mend('mmcv.ops.pixel_group', 'mmdet', 'mmdet3d', versions='mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6; numpy >= 1.24')
def numpy_aliases(module: ModuleType, execute: Execute) -> bool:
    """numpy 1.24 removed np.bool, np.int, np.float and np.long, which data sets, samplers and evaluators still use."""
    import numpy as np
    missing = {name: alias for name, alias in dict(bool=bool, int=int, float=float, long=int).items()
               if name not in vars(np)}
    vars(np).update(missing)
    execute()
    return bool(missing)


# ---------------------------------------------------------------------------------------------------------- mmdet

@_mend('mmdet.apis.test', 'mmcv.engine.test', versions='mmcv-full 1.7.2, mmdet 2.28.2')
def collect_results_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """collect_results_cpu tells the ranks its temporary folder through a CUDA tensor; without a GPU it travels as an object."""
    execute()
    if _has_gpu():
        return False
    original = module.collect_results_cpu

    @functools.wraps(original)
    def collect_results_cpu(result_part: list, size: int, tmpdir: str | None = None) -> list | None:
        import tempfile

        from torch import distributed as dist
        if tmpdir is None:
            box = [tempfile.mkdtemp(prefix='collect_results_')]
            if dist.is_initialized():
                box = [box[0] if dist.get_rank() == 0 else None]
                dist.broadcast_object_list(box)
            tmpdir = box[0]
        return original(result_part, size, tmpdir)

    module.collect_results_cpu = collect_results_cpu
    return True


@_mend('mmdet.utils.util_distribution', versions='mmdet 2.28.2')
def build_ddp_on_cpu(module: ModuleType, execute: Execute) -> bool:
    """mmdet's build_ddp asserts that the device is an accelerator, so distributed training and testing with gloo cannot start."""
    execute()
    original = module.build_ddp

    @functools.wraps(original)
    def build_ddp(model: Any, device: str = 'cuda', *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if device != 'cpu':
            return original(model, device, *args, **kwargs)
        return module.MMDistributedDataParallel(model, *args, **{**kwargs, 'device_ids': None})

    module.build_ddp = build_ddp
    return True


# -------------------------------------------------------------------------------------------------------- mmdet3d

@_mend('mmdet3d', versions='mmdet3d 1.0.0rc6 with mmcv-full 1.7.1 and 1.7.2')
def mmdet3d_version_check(module: ModuleType, execute: Execute) -> bool:
    """mmdet3d's import asserts mmcv <= 1.7.0, though 1.7.1 and 1.7.2 only fixed bugs; it is shown 1.7.0 while it looks."""
    import mmcv
    if mmcv.__version__ not in ('1.7.1', '1.7.2'):
        execute()
        return False
    with _patched(mmcv, __version__='1.7.0'):
        execute()
    return True


@_mend('mmdet3d.core.evaluation.lyft_eval', 'mmdet3d.datasets.lyft_dataset', versions='mmdet3d 1.0.0rc6')
def mmdet3d_without_lyft(module: ModuleType, execute: Execute) -> bool:
    """mmdet3d imports lyft_dataset_sdk even for nuScenes, and that package pins libraries of 2019; stand-ins let these two modules load.

    They exist only during the import, and using one raises with the command that installs the real package.
    """
    if importlib.util.find_spec('lyft_dataset_sdk') is not None:
        execute()
        return False
    names = ['lyft_dataset_sdk', *(f'lyft_dataset_sdk.{part}' for part in (
        'eval', 'eval.detection', 'eval.detection.mAP_evaluation', 'lyftdataset', 'utils', 'utils.data_classes'))]
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
            raise ImportError(f'{self.__name__}.{name} is not installed: pip install --no-deps lyft_dataset_sdk')
        return absent


# --------------------------------------------------------------------------------------------------------- spconv

@_mend('spconv.pytorch.cppcore', versions='spconv 2.3.8')
def spconv_stream_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """spconv's backward pass asks for the current CUDA stream also when its tensors are on the CPU; without a GPU it is 0."""
    execute()
    if _has_gpu():
        return False
    module.get_current_stream = lambda: 0
    return True


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Runs its body with one OpenMP thread in every loaded runtime; spconv 2.3.8 on CPU needs it.

    With more threads spconv's rulebook has a race: 4 of 27,774 rows were wrong, others each run (one thread: 1e-7, and faster).
    spconv brings an OpenMP runtime of its own, so torch.set_num_threads alone does not reach it.
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


@contextlib.contextmanager
def _patched(target: object, **attributes: object) -> Iterator[None]:
    """Sets attributes of one object for the time of the body."""
    before = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
