_base_ = ['./rtdetr_r101vd.py', '../_base_/backends/onnxruntime.py']
