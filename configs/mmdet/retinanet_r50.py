# mmdet's own RetinaNet R50, as the benchmark measures it.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('retinanet/retinanet_r50_fpn_1x_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
