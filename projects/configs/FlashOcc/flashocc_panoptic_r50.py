from projects.configs.bevdet_model import R50, bevdet_data
from projects.configs.flashocc_model import flashocc, panoptic

model = panoptic(flashocc(R50, [1024, 2048], channels=80, widths=(160, 320, 640)))
data = bevdet_data()
