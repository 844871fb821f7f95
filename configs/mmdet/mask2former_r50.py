# mmdet's own Mask2Former R50, as the benchmark measures it.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [mmdet_config('mask2former/mask2former_r50_lsj_8x2_50e_coco.py')]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
