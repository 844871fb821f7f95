_base_ = ['./rotated_retinanet_toy.py', '../../../configs/_base_/backends/onnxruntime.py']
