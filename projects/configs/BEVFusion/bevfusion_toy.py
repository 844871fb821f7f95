from projects.configs.nuscenes_fusion import fusion_data
from projects.configs.nuscenes_lidar import toy

_base_ = ['../_base_/models/bevfusion_toy.py', '../_base_/plugin_runtime.py']
data = fusion_data(
    dict(final_dim=[96, 256], resize_lim=[256 / 352, 256 / 352], source=[198, 352]),
    sweeps=0,
    **toy(),
)
