"""Toys of CornerNet and CentripetalNet: one small hourglass."""

from made_once import copied
from mmdeploy_ext.base.config import load_config, mmdet_config

KINDS = dict(
    corner='cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py',
    centripetal='centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py',
)


@copied
def toy(kind='corner'):
    """Return the config of a toy."""
    cfg = load_config(mmdet_config(KINDS[kind]))
    model = cfg.model
    sizes = dict(stage_channels=[16, 16, 24], stage_blocks=[1, 1, 1])
    model.backbone.update(sizes, downsample_times=2, num_stacks=1, feat_channel=16)
    model.bbox_head.update(num_classes=6, in_channels=16, num_feat_levels=1)
    model.test_cfg.max_per_img = 40
    return cfg
