_base_ = ['./stream_petr_r50_704_bs2_seq_428q_nui_60e.py', '../_base_/backends/torch.py']
