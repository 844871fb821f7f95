_base_ = ['./yolox_toy.py', '../_base_/backends/torch.py']
