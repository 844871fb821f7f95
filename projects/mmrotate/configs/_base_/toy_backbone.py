# A quarter-width ResNet-18, which begins as that of configs/demo/atss_toy.py; detectors add `out_indices`.
model = dict(
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=4,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='demo/checkpoints/atss_toy.pth', prefix='backbone.')))
