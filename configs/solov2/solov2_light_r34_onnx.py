_base_ = ['./solov2_light_r34.py', '../_base_/backends/onnxruntime.py']
