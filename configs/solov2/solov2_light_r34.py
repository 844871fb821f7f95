# mmdet's own SOLOv2 light R34; override data and classes in a leaf of your own, or with --cfg-options.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('solov2/solov2_light_r34_fpn_3x_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
