# mmdet3d's own SECOND on dynamic voxels.
from mmdeploy_ext.base.config import mmdet3d_config

_base_ = [mmdet3d_config('dynamic_voxelization/dv_second_secfpn_2x8_cosine_80e_kitti-3d-3class.py')]
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
