# PETRv2 with VoVNet-99. Source: megvii-research/PETR f7525f9.
from projects.configs.petr_model import VOVNET_99, petr

model = petr(VOVNET_99, [768, 1024], second=True)
