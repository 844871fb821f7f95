_base_ = ['./bevdet_toy.py', '../_base_/backends/torch.py']
