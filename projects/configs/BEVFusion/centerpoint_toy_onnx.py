_base_ = ['./centerpoint_toy.py', '../_base_/backends/onnxruntime.py']
