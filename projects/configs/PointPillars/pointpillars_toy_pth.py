_base_ = ['./pointpillars_toy.py', '../_base_/backends/torch.py']
