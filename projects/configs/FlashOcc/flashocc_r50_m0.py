# The small model: depth bins of 1 m, 128 channels of the encoded view.
from projects.configs.bevdet_model import R50, bevdet_data
from projects.configs.flashocc_model import flashocc

model = flashocc(R50, [1024, 2048], depth_step=1.0, view=128)
data = bevdet_data()
