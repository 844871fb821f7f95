_base_ = ['./atss_toy.py', '../_base_/backends/torch.py']
