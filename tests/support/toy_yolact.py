"""The toy of YOLACT: the backbone of the Mask R-CNN toy, 32 channels, eight prototypes."""

from made_once import copied
from mmdeploy_ext.base.config import load_config, mmdet_config
from toy_query import small_backbone


@copied
def toy():
    """Return the config of the toy."""
    cfg = load_config(mmdet_config('yolact/yolact_r50_1x8_coco.py'))
    model = cfg.model
    model.backbone = small_backbone()
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    sizes = dict(num_classes=6, in_channels=32)
    model.bbox_head.update(sizes, feat_channels=32, num_protos=8)
    model.mask_head.update(sizes, num_protos=8, proto_channels=(32, None, 8), proto_kernel_sizes=(3, -2, 1))
    model.segm_head.update(sizes)
    model.test_cfg.update(max_per_img=40, nms_pre=200, top_k=50)
    return cfg
