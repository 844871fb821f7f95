_base_ = ['./solo_r50.py', '../_base_/backends/onnxruntime.py']
