from projects.configs.bevformer_model import R50, bevformer

model = bevformer(R50, [2048], levels=1, side=50, layers=3)
