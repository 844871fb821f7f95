# PETR with ResNet-50 of deformable convolutions, stride 32. Source: megvii-research/PETR f7525f9.
from projects.configs.petr_model import R50_DCN, petr

model = petr(dict(R50_DCN, out_indices=(3,)), [2048])
