_base_ = ['./panoptic_fpn_toy.py', '../_base_/backends/torch.py']
