"""Patches of mmdet 2.28.2 and mmdet3d 1.0.0rc6 for today's PyTorch, each with its reason."""

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from mmdeploy_ext.upstream.compat.import_hook import Execute, after, has_gpu, patch, patched

RARELY_USED = {
    'torchvision.ops.roi_align': ('torch._dynamo', 'torch._dynamo.utils'),
    'mmdet.models.dense_heads.paa_head': ('sklearn', 'sklearn.mixture'),
    'nuscenes.nuscenes': ('sklearn', 'sklearn.metrics'),
    'mmdet.core.bbox.assigners.hungarian_assigner': ('scipy', 'scipy.optimize'),
    'mmdet.core.bbox.assigners.mask_hungarian_assigner': ('scipy', 'scipy.optimize'),
    'mmdet.core.visualization.image': (
        'matplotlib',
        'matplotlib.pyplot',
        'matplotlib.collections',
        'matplotlib.patches',
    ),
    'mmdet3d.core.visualizer.show_result': ('trimesh',),
    'mmdet3d.datasets.lyft_dataset': ('pandas',),
}
"""Module -> a package, and the modules of it that it imports."""


class _LazyModule(ModuleType):
    """Imports its module when one of its names is called."""

    is_stand_in = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call if self.is_stand_in else getattr(importlib.import_module(self.__name__), name)


@patch(*RARELY_USED, versions='torchvision 0.28.0, mmdet 2.28.2, mmdet3d 1.0.0rc6, nuscenes-devkit 1.2.0')
def libraries_that_few_models_call(module: ModuleType, execute: Execute) -> bool:
    """torch._dynamo and sklearn took 4 of the 8.5 s of a tool's start, for a function each."""
    package, *inner = names = RARELY_USED[module.__name__]
    if package in sys.modules or importlib.util.find_spec(package) is None:
        execute()
        return False
    stubs = {name: _LazyModule(name) for name in names}
    for name in inner:
        setattr(stubs[package], name.rpartition('.')[2], stubs[name])
    sys.modules.update(stubs)
    try:
        execute()
    finally:
        for name, stub in stubs.items():
            del sys.modules[name]
            stub.is_stand_in = False
    return True


@after(
    'mmdet.datasets.api_wrappers.panoptic_evaluation',
    'mmdet.datasets.coco_panoptic',
    'mmdet.datasets.pipelines.loading',
    versions='mmdet 2.28.2',
)
def panoptic_without_panopticapi(module: ModuleType) -> bool | None:
    """Panoptic data sets ask for panopticapi, which is in no package registry."""
    if importlib.util.find_spec('panopticapi') is not None:
        return False
    from mmdeploy_ext.upstream.compat import panoptic_quality

    module.panopticapi = panoptic_quality
    for name in ('PQStat', 'rgb2id', 'id2rgb', 'VOID', 'OFFSET'):
        setattr(module, name, getattr(panoptic_quality, name))


@after('mmdet.models.dense_heads.solo_head', 'mmdet.models.dense_heads.solov2_head', versions='mmdet 2.28.2')
def instances_all_filtered(module: ModuleType) -> None:
    """SOLO's heads raise where the last threshold removes every instance: they resize a stack of no masks."""
    functional = module.F

    def interpolate(values: Any, size: Any = None, *args: Any, **options: Any) -> Any:
        if size is not None and values.shape[1] == 0:
            return values.new_zeros((*values.shape[:2], *size))
        return functional.interpolate(values, size, *args, **options)

    module.F = ModuleType('functional')
    module.F.__dict__.update(vars(functional), interpolate=interpolate)


@after('mmdet.models.dense_heads.tood_head', versions='mmdet 2.28.2')
def geometric_mean_without_gradient(module: ModuleType) -> bool:
    """TOOD's scores are an autograd.Function, which the TorchScript exporter does not see into.

    Only an export uses the formula, so that a proof compares it with the function.
    """
    import torch

    trained = getattr(module, 'sigmoid_geometric_mean', None)
    if trained is None:
        return False

    def sigmoid_geometric_mean(x: Any, y: Any) -> Any:
        is_export = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not is_export or x.requires_grad or y.requires_grad:
            return trained(x, y)
        return (x.sigmoid() * y.sigmoid()).sqrt()

    module.sigmoid_geometric_mean = sigmoid_geometric_mean
    return True


@patch('mmdet3d.core.evaluation.kitti_utils.rotate_iou', versions='mmdet3d 1.0.0rc6')
def overlaps_without_gpu(module: ModuleType, execute: Execute) -> bool:
    """KITTI's evaluator compares rotated boxes by CUDA kernels, and cannot be imported without a GPU."""
    if has_gpu():
        execute()
        return False
    from mmdeploy_ext.upstream.compat.kitti_overlaps import overlaps

    module.rotate_iou_gpu_eval = overlaps
    return True


@after('mmdet3d.datasets.nuscenes_mono_dataset', versions='mmdet3d 1.0.0rc6', without_gpu=True)
def boxes_of_pictures_without_gpu(module: ModuleType) -> None:
    """The evaluator of single pictures of nuScenes moves its boxes to a GPU, with or without one."""
    import torch

    convert = module.nusc_box_to_cam_box3d

    @functools.wraps(convert)
    def on_cpu(boxes: Any) -> Any:
        with patched(torch.Tensor, cuda=lambda tensor, *_: tensor):
            return convert(boxes)

    module.nusc_box_to_cam_box3d = on_cpu
