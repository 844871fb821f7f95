_base_ = ['./sparse4d_toy.py', '../_base_/backends/onnxruntime.py']
