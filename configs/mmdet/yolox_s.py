# mmdet's own YOLOX-s, as the benchmark measures it.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('yolox/yolox_s_8x8_300e_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
