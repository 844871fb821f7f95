from projects.configs.bevdet_model import R50, bevdet_data
from projects.configs.flashocc_model import flashocc

model = flashocc(R50, [1024, 2048])
data = bevdet_data()
