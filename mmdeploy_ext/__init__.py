"""mm2onnx: OpenMMLab 1.x detectors as ONNX models, with the proof that they are the same models."""

__version__ = '0.2.0'
