_base_ = ['./decoupled_solo_toy.py', '../_base_/backends/onnxruntime.py']
