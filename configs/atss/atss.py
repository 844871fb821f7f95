# mmdet's own ATSS R50; override data and classes in a leaf of your own, or with --cfg-options.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('atss/atss_r50_fpn_1x_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
