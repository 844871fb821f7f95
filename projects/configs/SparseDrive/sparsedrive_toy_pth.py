_base_ = ['./sparsedrive_toy.py', '../_base_/backends/torch.py']
