"""Detectors of queries with masks without PyTorch: a `full` graph does all of it."""

from mmdeploy_ext.runtime.query.model import detections

__all__ = ['RUNNERS', 'detections']
RUNNERS = {'full': 'tools/onnx/onnx_with_postprocess.py'}
