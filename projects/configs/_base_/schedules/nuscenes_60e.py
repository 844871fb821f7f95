# 60 epochs on 8 GPUs of 2 sequences each; 28130 key frames, so 1758 iterations per epoch.
_base_ = ['../stream_runtime.py']
# The backbone is pretrained on images in 2D: it always wants the smaller rate.
optimizer = dict(paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))))
optimizer_config = dict(type='Fp16OptimizerHook', loss_scale='dynamic')
runner = dict(type='IterBasedRunner', max_iters=60 * 1758)
checkpoint_config = dict(interval=1758, max_keep_ckpts=3)
evaluation = dict(interval=60 * 1758)
