"""The 3D families of mm2onnx, their models and data sets: importing this registers them."""

import mmdeploy_ext.upstream.models.mmdet3d  # noqa: F401
from mmdeploy_ext.families.base import load_families

load_families(library='mmdet3d')
