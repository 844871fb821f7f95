_base_ = ['./rtdetr_r18vd.py', '../_base_/backends/torch.py']
