_base_ = ['./atss.py', '../_base_/backends/torch.py']
