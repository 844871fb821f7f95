_base_ = ['./decoupled_solo_r50.py', '../_base_/backends/onnxruntime.py']
