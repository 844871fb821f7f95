from projects.configs.nuscenes_fusion import fusion_data

_base_ = ['../_base_/models/bevfusion_r50.py']
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
data = fusion_data(
    dict(final_dim=[256, 704], resize_lim=[0.48, 0.48]),
    [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    train_image=dict(final_dim=[256, 704], resize_lim=[0.38, 0.55], rot_lim=[-5.4, 5.4], rand_flip=True),
    rotation=0.78539816,
    scale=(0.9, 1.1),
)
