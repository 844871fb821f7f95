_base_ = ['./stream_petr_toy.py', '../_base_/backends/torch.py']
