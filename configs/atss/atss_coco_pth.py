_base_ = ['./atss_coco.py', '../_base_/backends/torch.py']
