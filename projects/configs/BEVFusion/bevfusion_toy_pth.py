_base_ = ['./bevfusion_toy.py', '../_base_/backends/torch.py']
