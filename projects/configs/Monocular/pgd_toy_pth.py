_base_ = ['./pgd_toy.py', '../../../configs/_base_/backends/torch.py']
