_base_ = ['./retinanet_toy.py', '../_base_/backends/onnxruntime.py']
