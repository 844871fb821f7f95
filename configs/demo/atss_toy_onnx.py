_base_ = ['./atss_toy.py', '../_base_/backends/onnxruntime.py']
