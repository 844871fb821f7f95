_base_ = ['./smoke_toy.py', '../../../configs/_base_/backends/onnxruntime.py']
