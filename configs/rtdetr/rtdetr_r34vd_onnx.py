_base_ = ['./rtdetr_r34vd.py', '../_base_/backends/onnxruntime.py']
