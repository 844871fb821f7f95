# PETR in small: ResNet-18 of 16 base channels, 64 channels, 2 layers, 60 queries.
from projects.configs.petr_model import petr_toy

model = petr_toy()
