"""What is compared: one config of mmdet 3.3 of each kind of detector that both sides have."""

from __future__ import annotations

import numpy as np

SIZE, PICTURE, ORIGINAL = (384, 512), (350, 480), (280, 384)
"""Pixels (H, W): of the batch, of the picture in it before padding, of the file that it was resized from."""
SCALE = 1.25
BORDER = (17.0, 367.0, 16.0, 496.0)
"""Top, bottom, left and right of the picture where it is in the middle of the batch (CenterNet, corners)."""

KINDS = (
    'atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py',
    'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
    'ddod/ddod_r50_fpn_1x_coco.py',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'detr/detr_r18_8xb2-500e_coco.py',
    'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
    'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py',
    'faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    'fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
    'foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'fsaf/fsaf_r50_fpn_1x_coco.py',
    'gfl/gfl_r50_fpn_1x_coco.py',
    'gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py',
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py',
    'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
    'htc/htc_r50_fpn_1x_coco.py',
    'lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py',
    'ld/ld_r18-gflv1-r101_fpn_1x_coco.py',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py',
    'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
    'paa/paa_r50_fpn_1x_coco.py',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py',
    'pisa/retinanet-r50_fpn_pisa_1x_coco.py',
    'pisa/ssd300_pisa_coco.py',
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
    'queryinst/queryinst_r50_fpn_1x_coco.py',
    'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'retinanet/retinanet_r18_fpn_1x_coco.py',
    'rpn/rpn_r50_fpn_1x_coco.py',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'rtmdet/rtmdet_m_8xb32-300e_coco.py',
    'sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py',
    'sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py',
    'sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'scnet/scnet_r50_fpn_1x_coco.py',
    'solo/solo_r18_fpn_8xb8-lsj-200e_coco.py',
    'solo/decoupled-solo_r50_fpn_1x_coco.py',
    'solo/decoupled-solo-light_r50_fpn_3x_coco.py',
    'solov2/solov2-light_r18_fpn_ms-3x_coco.py',
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'ssd/ssd300_coco.py',
    'tood/tood_r50_fpn_1x_coco.py',
    'tridentnet/tridentnet_r50-caffe_1x_coco.py',
    'vfnet/vfnet_r50_fpn_1x_coco.py',
    'yolact/yolact_r50_1xb8-55e_coco.py',
    'yolo/yolov3_d53_8xb8-320-273e_coco.py',
    'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'yolox/yolox_s_8xb8-300e_coco.py',
)

OPTIONS = {
    'keep_empty': dict(min_bbox_size=-1),
    'no_top_k': dict(nms_pre=1_000_000),
}
"""Entries of `test_cfg` that are changed in mmdet 3 where its results differ, one after the other."""
OPTIONS2 = ('mask_scores', 'last_mask')
"""What is taken of mmdet 2.28 instead: the scores of masks, the masks of the last stage."""


def segments(panoptic: np.ndarray) -> dict[str, np.ndarray]:
    """Return the segments of a panoptic map (h, w) as results without boxes, of score 1.

    An id is the class plus 1000 for each instance, in both versions.
    """
    ids = np.unique(panoptic)
    return dict(
        bboxes=np.zeros((len(ids), 4), np.float32),
        scores=np.ones(len(ids), np.float32),
        labels=(ids % 1000).astype(np.int64),
        masks=panoptic[None] == ids[:, None, None],
    )
