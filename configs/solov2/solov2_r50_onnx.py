_base_ = ['./solov2_r50.py', '../_base_/backends/onnxruntime.py']
