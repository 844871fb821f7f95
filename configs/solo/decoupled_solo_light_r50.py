# mmdet's own Decoupled SOLO light R50; override data and classes in a leaf of your own or by --cfg-options.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('solo/decoupled_solo_light_r50_fpn_3x_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
