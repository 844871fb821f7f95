_base_ = ['./deformable_detr_toy.py', '../_base_/backends/torch.py']
