_base_ = ['./solov2_toy.py', '../_base_/backends/onnxruntime.py']
