_base_ = ['./rtdetr_toy.py', '../_base_/backends/onnxruntime.py']
