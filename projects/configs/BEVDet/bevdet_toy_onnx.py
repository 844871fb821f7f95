_base_ = ['./bevdet_toy.py', '../_base_/backends/onnxruntime.py']
backend_config = dict(contract='portable')
