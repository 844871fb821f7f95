_base_ = ['./mvxnet_toy.py', '../_base_/backends/torch.py']
