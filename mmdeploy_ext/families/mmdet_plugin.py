"""The 2D families of mm2onnx and their models: importing this registers them."""

import mmdeploy_ext.upstream.models.mmdet  # noqa: F401
from mmdeploy_ext.families.base import load_families

load_families(library='')  # those that need no library besides mmdet
