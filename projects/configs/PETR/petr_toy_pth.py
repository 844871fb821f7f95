_base_ = ['./petr_toy.py', '../_base_/backends/torch.py']
