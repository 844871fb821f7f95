_base_ = ['./bevformer_toy.py', '../_base_/backends/torch.py']
