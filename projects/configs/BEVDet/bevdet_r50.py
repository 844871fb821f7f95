from projects.configs.bevdet_model import R50, bevdet, bevdet_data

model = bevdet(R50, [1024, 2048], neck=256, channels=64, depth_step=1.0)
data = bevdet_data()
