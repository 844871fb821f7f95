from projects.configs.bevformer_model import R101_DCN, bevformer

model = bevformer(dict(R101_DCN, out_indices=(1, 2, 3)), [512, 1024, 2048], levels=4, side=200, layers=6)
