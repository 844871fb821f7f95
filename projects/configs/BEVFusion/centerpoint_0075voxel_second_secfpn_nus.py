# mmdet3d's own CenterPoint: the whole detector, with mmdet3d's parameter names.
from mmdeploy_ext.base.config import mmdet3d_config

_base_ = [mmdet3d_config('centerpoint/centerpoint_0075voxel_second_secfpn_4x8_cyclic_20e_nus.py')]
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
