_base_ = ['./rtdetr_r50vd.py', '../_base_/backends/torch.py']
