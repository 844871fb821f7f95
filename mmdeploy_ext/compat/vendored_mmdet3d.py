"""Makes a research repository's copy of mmdet3d 0.x importable without its compiled extension modules.

For mmdet3d 0.17 as mit-han-lab/bevfusion 326653d has it, beside mmcv-full 1.7.2 and PyTorch 2.13. Extensions
that were built are used, since another finder finds them first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mmdeploy_ext.compat.import_hook import Execute, patch
from mmdeploy_ext.compat.mmdet3d_operators import MODULES

COMPILED = (
    *MODULES,
    'assign_score_withk_ext',
    'ball_query_ext',
    'feature_decorator_ext',
    'furthest_point_sample_ext',
    'gather_points_ext',
    'group_points_ext',
    'interpolate_ext',
    'iou3d_cuda',
    'knn_ext',
    'roiaware_pool3d_ext',
)
"""Last names of mmdet3d 0.x's extension modules; those that `MODULES` lacks can be imported, not called."""

executed_operators: dict[str, None] = {}
"""Operators of `MODULES` that ran in this process, by their first calls, such as 'voxel_layer.hard_voxelize'.

A report names them, as their results are those of PyTorch and not of the extension.
"""


class OperatorModule(ModuleType):
    """An extension module whose functions are those of `MODULES`, which are made for tensors on the CPU.

    Every name that has no two leading underscores is a function, since `from module import name` happens at
    import; one that `MODULES` lacks raises NotImplementedError when it is called. The first call of another
    puts it at the end of `executed_operators`, before it runs.
    """

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)
        module = self.__name__.rpartition('.')[2]
        function = MODULES.get(module, {}).get(name)

        def operator(*args: Any, **options: Any) -> Any:
            if function is None:
                raise NotImplementedError(
                    f'{self.__name__}.{name}: this operator is not compiled, and has no form in PyTorch; '
                    f'build the operators of the repository (python setup.py develop)'
                )
            executed_operators[f'{module}.{name}'] = None
            return function(*args, **options)

        return operator


class OperatorFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds extension modules of `mmdet3d.ops`; as the last finder it sees those that no other one finds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of an extension module named in `COMPILED`; None for other modules."""
        if fullname.startswith('mmdet3d.ops.') and fullname.rpartition('.')[2] in COMPILED:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return an `OperatorModule` of the name of the spec."""
        return OperatorModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: attributes are made when they are looked up."""


def stand_in_for_operators() -> None:
    """Make `import mmdet3d` succeed for a copy without compiled extensions; call it before that import.

    A second call changes nothing.
    """
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(OperatorFinder())


@patch('mmdet3d.ops.spconv.conv', versions='mmdet3d 0.17 with mmcv-full 1.7.2')
def mmdet3d_sparse_convolutions(module: ModuleType, execute: Execute) -> bool:
    """mmcv registers sparse convolutions under the names of mmdet3d 0.x since 1.5: the copy's replace them.

    `execute` runs the code of `module`, which registers those of the copy; models in the same process that
    name them in their config get these. Returned is whether mmcv had registered any.
    """
    from mmcv.cnn import CONV_LAYERS

    of_mmcv = [
        name for name, kind in CONV_LAYERS.module_dict.items() if kind.__module__.startswith('mmcv.ops.')
    ]
    replaced = [name for name in of_mmcv if name.startswith(('SparseConv', 'SubMConv', 'SparseInverseConv'))]
    for name in replaced:
        del CONV_LAYERS.module_dict[name]
    execute()
    return bool(replaced)
