# PETR in small: ResNet-18 of 16 base channels, 64 channels, 2 layers, 60 queries.
from projects.configs.petr_model import R18_TOY, petr

model = petr(
    R18_TOY, [64, 128], channels=64, heads=4, hidden=256, layers=2, queries=60, max_num=50, reach=32.0
)
