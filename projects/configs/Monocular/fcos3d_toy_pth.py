_base_ = ['./fcos3d_toy.py', '../../../configs/_base_/backends/torch.py']
