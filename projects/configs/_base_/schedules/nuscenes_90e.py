_base_ = ['./nuscenes_60e.py']
# 0.25 suits a backbone that has seen ImageNet only.
optimizer = dict(paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.25))))
runner = dict(max_iters=90 * 1758)
evaluation = dict(interval=90 * 1758)
