"""Detectors of rotated boxes: those of mmrotate 0.3.4, as families of mm2onnx.

Importing it registers the families, without PyTorch, mmcv or mmrotate.
"""

from mm2onnx_mmrotate.dense.options import OPTIONS, POSTPROCESS
from mmdeploy_ext import register_family

register_family(
    'rotated_dense',
    'mm2onnx_mmrotate.dense.family:RotatedDenseFamily',
    options=OPTIONS,
    postprocess=POSTPROCESS,
    runtime='mm2onnx_mmrotate.dense.runtime',
    library='mmrotate',
)
