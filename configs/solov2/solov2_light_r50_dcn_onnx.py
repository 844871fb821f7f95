_base_ = ['./solov2_light_r50_dcn.py', '../_base_/backends/onnxruntime.py']
