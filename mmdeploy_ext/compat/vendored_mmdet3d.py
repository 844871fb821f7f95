"""Makes a repository's copy of mmdet3d importable without its compiled extensions.

For mmdet3d 0.17 of mit-han-lab/bevfusion 326653d and 1.0.0rc4 of HuangJunJie2017/BEVDet f71858d. Built
extensions are used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from mmdeploy_ext.compat.import_hook import Execute, patch

COMPILED = (
    'assign_score_withk_ext',
    'ball_query_ext',
    'bev_pool_ext',
    'bev_pool_v2_ext',
    'feature_decorator_ext',
    'furthest_point_sample_ext',
    'gather_points_ext',
    'group_points_ext',
    'interpolate_ext',
    'iou3d_cuda',
    'knn_ext',
    'roiaware_pool3d_ext',
    'sparse_conv_ext',
    'voxel_layer',
)
"""Extension modules of copies."""


class OperatorModule(ModuleType):
    """An extension module with forms of `operator_forms`; others raise NotImplementedError when called."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)
        from mmdeploy_ext.compat.operator_forms import functions_of, missing

        package = sys.modules[self.__name__.rpartition('.')[0]].__file__ or ''

        def refuse(*args: Any, **options: Any) -> NoReturn:
            raise NotImplementedError(
                f'{self.__name__}.{name} is not compiled: {missing(package, name)}; build the operators of '
                f'the repository (python setup.py develop), or export the parts around it (--parts)'
            )

        return functions_of(package).get(name, refuse)


class OperatorFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds extension modules of `mmdet3d.ops` that no other finder finds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.startswith('mmdet3d.ops.') and fullname.rpartition('.')[2] in COMPILED:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return OperatorModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Attributes are made when they are looked up."""


def offer() -> None:
    """Make `import mmdet3d` succeed for a copy without compiled extensions."""
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(OperatorFinder())


@patch('mmdet3d.ops.spconv.conv', versions='mmdet3d 0.17 with mmcv-full 1.7.2')
def mmdet3d_sparse_convolutions(module: ModuleType, execute: Execute) -> bool:
    """mmcv registers sparse convolutions under mmdet3d 0.x's names since 1.5: the copy's replace them."""
    from mmcv.cnn import CONV_LAYERS

    of_mmcv = [
        name for name, kind in CONV_LAYERS.module_dict.items() if kind.__module__.startswith('mmcv.ops.')
    ]
    replaced = [name for name in of_mmcv if name.startswith(('SparseConv', 'SubMConv', 'SparseInverseConv'))]
    for name in replaced:
        del CONV_LAYERS.module_dict[name]
    execute()
    return bool(replaced)
