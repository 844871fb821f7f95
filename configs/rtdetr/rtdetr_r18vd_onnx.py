_base_ = ['./rtdetr_r18vd.py', '../_base_/backends/onnxruntime.py']
