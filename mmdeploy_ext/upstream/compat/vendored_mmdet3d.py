"""What a copy of mmdet3d 0.x in a repository needs beside today's mmcv."""

from types import ModuleType

from mmdeploy_ext.upstream.compat.import_hook import Execute, patch


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
