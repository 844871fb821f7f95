_base_ = ['./petrv2_toy.py', '../_base_/backends/torch.py']
