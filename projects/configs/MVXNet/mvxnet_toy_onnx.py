_base_ = ['./mvxnet_toy.py', '../_base_/backends/onnxruntime.py']
