"""Patches of torchvision and mmcv-full 1.7.2 for today's PyTorch and numpy, each with its reason."""

import functools
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mmdeploy_ext.upstream.compat.import_hook import Execute, after, patch, patched
from mmdeploy_ext.upstream.compat.patches_vendored import is_users


@patch('torchvision._meta_registrations', versions='torchvision 0.28.0 for CUDA beside torch 2.13.0 for CPU')
def torchvision_without_operators(module: ModuleType, execute: Execute) -> bool:
    """Without its compiled operators torchvision's import fails: "torchvision::nms does not exist".

    The wheel of the public index is built for CUDA and links libtorch_cuda.so, which a CPU-only torch lacks.
    This module, which registers fake kernels, is not run.
    """
    extension = sys.modules['torchvision.extension']
    if extension._has_ops():
        execute()
        return False
    return True


@after('torch.onnx.symbolic_helper', versions='torch 2.13.0')
def opset_of_old_exports(module: ModuleType) -> bool:
    """Forks of mmdet for OpenVINO read the opset of the export here when their operators are called."""
    vars(module).setdefault('_export_onnx_opset_version', 9)
    return False  # it adds a name


@after('mmcv.ops.nms', versions='mmcv-full 1.7.2')
def suppression_without_threshold_and_limit(module: ModuleType) -> bool:
    """Forks of mmdet call the suppression of mmcv 1.2, which had no threshold and limit of its own."""
    module.NMSop.forward.__defaults__ = (0.0, -1)
    return False  # calls with all arguments are as before


@patch('mmcv', 'mmcv.cnn.bricks.transformer', versions='mmcv-full 1.7.2')
def mmcv_import_warnings(module: ModuleType, execute: Execute) -> bool:
    """At every import mmcv warns that version 2 comes in 2023, and that a class has moved inside it."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='On January 1, 2023, MMCV will release v2.0.0')
        warnings.filterwarnings('ignore', message=r'``\w*MultiScaleDeformableAttention`` has been moved')
        execute()
    return True


@after('mmcv.cnn.bricks.wrappers', versions='mmcv-full 1.7.2')
def layers_without_questions(module: ModuleType) -> None:
    """Layers ask at each call whether their input is empty, which PyTorch before 1.5 did not take.

    torch.export cannot answer that for a number of rows that depends on values.
    """
    names = 'Conv2d', 'Conv3d', 'ConvTranspose2d', 'ConvTranspose3d', 'MaxPool2d', 'MaxPool3d', 'Linear'
    for name in names:
        del getattr(module, name).forward


@after('mmcv.utils.registry', versions='mmcv-full 1.7.2')
def scopes_without_registries(module: ModuleType) -> None:
    """Registry.get of `opera.SOIT` without a registry `opera` ends in an AttributeError.

    It returns None, and builders name the type.
    """
    original = module.Registry.get

    @functools.wraps(original)
    def get(self: Any, key: str) -> Any:
        scope, _ = self.split_scope_key(key)
        is_known = scope in (None, self.scope, *self.children)
        return original(self, key) if is_known or self.parent is not None else None

    module.Registry.get = get


@after('mmcv.utils.registry', versions='mmcv-full 1.7.2, mmdet 2.28.2')
def names_that_libraries_took_later(module: ModuleType) -> None:
    """A repository's class cannot be registered if a later library has its name: EfficientNet of MapTR.

    The repository's class replaces the library's, as in the version that it was written for. A class of this
    package gives way to a class of a repository or library.
    """
    registry = module.Registry
    original = registry._register_module

    @functools.wraps(original)
    def register(self: Any, module: Any, module_name: Any = None, force: bool = False) -> None:
        names = [module_name or module.__name__] if isinstance(module_name, str | None) else module_name
        taken = [self._module_dict[name] for name in names if name in self._module_dict]
        gives_way = all(_rank(owner) < _rank(module) for owner in taken)
        original(self, module, module_name, force or gives_way)

    registry._register_module = register


def _rank(registered: Any) -> int:
    """0 of this package, 1 of OpenMMLab, 2 of a repository's copy of that, 3 of other code."""
    package = registered.__module__.partition('.')[0]
    if package in ('mmcv', 'mmdet', 'mmdet3d', 'mmseg'):
        return 1 + is_users(getattr(sys.modules.get(registered.__module__), '__file__', None) or '')
    return 0 if package == __name__.partition('.')[0] else 3


@after('mmcv.utils.ext_loader', versions='mmcv-full 1.7.2')
def operators_without_kernels(module: ModuleType) -> None:
    """mmcv has operators for a GPU alone, and without a compiler has none: `mmcv.ops` cannot be imported.

    The CPU gets forms in PyTorch and numba, which `mmcv_operators` lists.
    """
    from mmdeploy_ext.upstream.compat import mmcv_operators

    name = 'mmcv._ext'
    if importlib.util.find_spec(name) is not None:
        mmcv_operators.use_on_cpu(importlib.import_module(name))
    else:
        sys.modules[name] = mmcv_operators.PlainExtension(name)


@after('mmcv.runner.dist_utils', versions='mmcv-full 1.7.2', without_gpu=True)
def init_dist_without_gpu(module: ModuleType) -> None:
    """init_dist takes the rank modulo the number of GPUs: ZeroDivisionError on a machine without one."""
    original = module.init_dist

    @functools.wraps(original)
    def init_dist(launcher: str, **kwargs: Any) -> None:
        import torch

        with patched(torch.cuda, device_count=lambda: 1, set_device=lambda device: None):
            original(launcher, **kwargs)

    module.init_dist = init_dist


@after('torch.onnx', versions='torch 2.13')
def export_flag_in_its_old_place(module: ModuleType) -> bool:
    """torch.onnx.utils had is_in_onnx_export, which code for older versions asks there."""
    if hasattr(module.utils, 'is_in_onnx_export'):
        return False
    module.utils.is_in_onnx_export = module.is_in_onnx_export
    return True


@after('mmcv.parallel._functions', versions='mmcv-full 1.7.2, torch >= 2.1')
def scatter_stream_of_int_device(module: ModuleType) -> bool | None:
    """Scatter asks for a copy stream by GPU number; torch 2.1 wants a device: 'int' has no 'type'."""
    import torch

    parameter = next(iter(inspect.signature(module._get_stream).parameters.values()))
    if 'device' not in str(parameter.annotation):
        return False
    module._get_stream = functools.cache(torch.cuda.Stream)


@after('mmcv.runner.checkpoint', versions='mmcv-full 1.7.2, torch >= 2.6')
def numpy_in_checkpoints(module: ModuleType) -> None:
    """torch.load (weights_only=True since 2.6) refuses the numpy values in an mmcv checkpoint's `meta`."""
    import torch

    torch.serialization.add_safe_globals(numpy_checkpoint_globals())


def numpy_checkpoint_globals() -> list[Any]:
    """Functions that rebuild numpy scalars and arrays, of numpy 1 and 2."""
    import numpy as np

    core = np.core if np.lib.NumpyVersion(np.__version__) < '2.0.0' else np._core
    rebuild = [
        (getattr(core.multiarray, function), f'numpy.{package}.multiarray.{function}')
        for function in ('scalar', '_reconstruct')
        for package in ('core', '_core')
    ]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?OSU'}
    return [*rebuild, np.ndarray, np.dtype, *sorted(dtypes, key=str)]


OPENMMLAB = 'mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6'


@patch('mmcv', 'mmdet', 'mmdet3d', versions=f'{OPENMMLAB} with numpy >= 1.24')
def numpy_aliases(module: ModuleType, execute: Execute) -> bool:
    """numpy 1.24 removed np.bool, np.int, np.float and np.long; libraries and repositories use them."""
    import numpy as np

    aliases = dict(bool=bool, int=int, float=float, long=int)
    missing = {name: alias for name, alias in aliases.items() if name not in vars(np)}
    vars(np).update(missing)
    execute()
    return bool(missing)


@after('mmcv._ext', versions='mmcv-full 1.7.2')
def kernels_of_contiguous_tensors(module: ModuleType) -> None:
    """Compiled operators such as RoIAlign and deformable convolution are wrong for channels_last inputs.

    They read the memory of any tensor as if it were contiguous, and beyond it. They get contiguous copies,
    and what they write into these is copied back.
    """
    for name, kernel in list(vars(module).items()):
        if inspect.isbuiltin(kernel):
            setattr(module, name, _of_contiguous(kernel))


def _of_contiguous(kernel: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @functools.wraps(kernel)
    def call(*args: Any, **options: Any) -> Any:
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for value in (*args, *options.values()):
            if isinstance(value, torch.Tensor) and not value.is_contiguous():
                copies[id(value)] = value, value.contiguous()
        if not copies:
            return kernel(*args, **options)
        args = tuple(copies[id(value)][1] if id(value) in copies else value for value in args)
        options = {
            name: copies[id(value)][1] if id(value) in copies else value for name, value in options.items()
        }
        result = kernel(*args, **options)
        for tensor, copied in copies.values():
            is_same = (copied == tensor) | ((copied != copied) & (tensor != tensor))
            if not is_same.all():
                tensor.copy_(copied)
        return result

    return call


@after('mmcv.ops.scatter_points', versions='mmcv-full 1.7.2')
def dynamic_scatter_without_gpu(module: ModuleType) -> None:
    """DynamicScatter, which pools dynamic voxels, only has a CUDA kernel."""
    _on_cpu(module, 'dynamic_scatter')


@after('mmcv.ops.masked_conv', versions='mmcv-full 1.7.2')
def masked_conv_without_gpu(module: ModuleType) -> None:
    """MaskedConv2d, which convolves inside a mask, only has a CUDA kernel."""
    _on_cpu(module, 'masked_conv2d')


@after('mmcv.ops.carafe', versions='mmcv-full 1.7.2')
def carafe_without_gpu(module: ModuleType) -> None:
    """CARAFE, which enlarges maps by kernels of their own, only has a CUDA kernel."""
    _on_cpu(module, 'carafe')
    _on_cpu(module, 'carafe_naive', 'carafe')


@after('mmcv.ops.deform_roi_pool', versions='mmcv-full 1.7.2')
def deform_roi_pool_without_gpu(module: ModuleType) -> None:
    """Deformable pooling of regions only has a CUDA kernel."""
    _on_cpu(module, 'deform_roi_pool')


@after('mmcv.ops.multi_scale_deform_attn', versions='mmcv-full 1.7.2')
def deformable_attention_without_gpu(module: ModuleType) -> None:
    """MultiScaleDeformableAttnFunction, which some repositories call by themselves, has only a CUDA kernel.

    The CPU gets mmcv's own form of PyTorch operators.
    """
    from mmdeploy_ext.upstream.compat.plain_kernels import attention_at_points

    function = module.MultiScaleDeformableAttnFunction
    on_gpu = function.apply

    def apply(value: Any, *args: Any) -> Any:
        return on_gpu(value, *args) if value.is_cuda else attention_at_points(value, *args)

    function.apply = apply


@after('mmcv.ops.roi_align', versions='mmcv-full 1.7.2')
def regions_without_numbers(module: ModuleType) -> None:
    """RoIAlign's kernel ends in an internal assertion for regions without numbers, and reads beyond its maps.

    On the CPU such regions are a CheckpointError with their number, an IndexError if they are of no image.
    """
    original = module.roi_align

    def roi_align(features: Any, regions: Any, *args: Any) -> Any:
        import torch

        from mmdeploy_ext.base.errors import CheckpointError

        is_read = not features.is_cuda and not torch.compiler.is_compiling()
        if is_read and not regions.isfinite().all():
            lost = int((~regions.isfinite().all(dim=1)).sum())
            raise CheckpointError(
                f'RoIAlign: {lost} of {len(regions)} regions have coordinates that are not finite, which '
                'happens with weights of another model or a damaged file: check the checkpoint'
            )
        if is_read and len(regions) and not 0 <= regions[:, 0].min() <= regions[:, 0].max() < len(features):
            images = regions[:, 0].unique().tolist()
            raise IndexError(f'RoIAlign: regions of the images {images[:5]}, maps of {len(features)}')
        return original(features, regions, *args)

    module.roi_align = roi_align


def _on_cpu(module: ModuleType, name: str, plain: str = '') -> None:
    original = getattr(module, name)

    def function(features: Any, *args: Any, **kwargs: Any) -> Any:
        from mmdeploy_ext.upstream.compat import plain_kernels

        operator = original if features.is_cuda else getattr(plain_kernels, plain or name)
        return operator(features, *args, **kwargs)

    setattr(module, name, function)


@after('mmcv.ops.sync_bn', versions='mmcv-full 1.7.2', without_gpu=True)
def sync_bn_without_gpu(module: ModuleType) -> None:
    """MMSyncBN asks for a process group when it is built, and its kernels only run on CUDA."""
    import torch

    module.NORM_LAYERS.module_dict['MMSyncBN'] = torch.nn.SyncBatchNorm
