# mmdet's own Deformable DETR R50, as the benchmark measures it.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('deformable_detr/deformable_detr_r50_16x2_50e_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
