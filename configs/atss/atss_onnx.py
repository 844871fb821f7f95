_base_ = ['./atss.py', '../_base_/backends/onnxruntime.py']
