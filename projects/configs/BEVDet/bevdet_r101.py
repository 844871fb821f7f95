# ResNet-101 in place of ResNet-50; the original repository publishes no such config.
from projects.configs.bevdet_model import R50, bevdet, bevdet_data

model = bevdet(dict(R50, depth=101), [1024, 2048], neck=256, channels=64, depth_step=1.0)
data = bevdet_data()
