_base_ = ['./petrv2_toy.py', '../_base_/backends/onnxruntime.py']
backend_config = dict(contract='portable')
