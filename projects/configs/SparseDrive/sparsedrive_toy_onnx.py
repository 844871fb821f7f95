_base_ = ['./sparsedrive_toy.py']
backend_config = dict(type='OnnxRuntimeBackend', providers=['CPUExecutionProvider'])
