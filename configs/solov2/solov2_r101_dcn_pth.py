_base_ = ['./solov2_r101_dcn.py', '../_base_/backends/torch.py']
