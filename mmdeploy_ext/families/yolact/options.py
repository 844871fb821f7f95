"""YOLACT: the check of the `postprocess` entry of its files."""

from mmdeploy_ext.contract.schema import COUNT, FRACTION, LIMIT, number, open_record

POSTPROCESS = open_record(
    score_thr=number(),
    iou_thr=FRACTION,
    mask_thr=FRACTION,
    nms_pre=LIMIT,
    top_k=COUNT,
    max_per_img=COUNT,
    num_classes=COUNT,
)
"""The entry `postprocess` of the metadata."""
