_base_ = ['./centerpoint_pillar_toy.py', '../_base_/backends/onnxruntime.py']
