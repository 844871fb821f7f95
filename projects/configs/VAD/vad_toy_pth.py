_base_ = ['./vad_toy.py', '../_base_/backends/torch.py']
