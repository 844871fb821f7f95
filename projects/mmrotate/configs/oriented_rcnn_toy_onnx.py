_base_ = ['./oriented_rcnn_toy.py', '../../../configs/_base_/backends/onnxruntime.py']
