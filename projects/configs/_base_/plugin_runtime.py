# mmdet3d's runtime with the plugin of this repository.
from mmdeploy_ext.base.config import mmdet3d_config

_base_ = [mmdet3d_config('_base_/default_runtime.py')]
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
