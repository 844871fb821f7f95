# `align_after_view_transfromation` is True, as in every deployment; the published default is False.
from projects.configs.bevdet_model import R50, bevdet, bevdet_data

model = bevdet(R50, [1024, 2048], neck=512, channels=80, depth_step=0.5, adjacent=8)
data = bevdet_data()
