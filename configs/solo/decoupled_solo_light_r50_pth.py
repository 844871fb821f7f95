_base_ = ['./decoupled_solo_light_r50.py', '../_base_/backends/torch.py']
