_base_ = ['./vad_toy.py', '../_base_/backends/onnxruntime.py']
backend_config = dict(contract='portable')
