# mmdet3d's own SECOND on KITTI: blocks of plain convolutions, 4 values per point.
from mmdeploy_ext.base.config import mmdet3d_config

_base_ = [mmdet3d_config('second/hv_second_secfpn_6x8_80e_kitti-3d-3class.py')]
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
