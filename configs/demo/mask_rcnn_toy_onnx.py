_base_ = ['./mask_rcnn_toy.py', '../_base_/backends/onnxruntime.py']
