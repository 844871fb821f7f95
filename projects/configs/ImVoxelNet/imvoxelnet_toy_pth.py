_base_ = ['./imvoxelnet_toy.py', '../../../configs/_base_/backends/torch.py']
