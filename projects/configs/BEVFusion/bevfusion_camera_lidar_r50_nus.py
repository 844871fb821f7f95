from projects.configs.nuscenes_fusion import fusion_data

_base_ = ['../_base_/models/bevfusion_r50.py']
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
data = fusion_data(dict(final_dim=[256, 704], resize_lim=[0.48, 0.48]))
