from projects.configs.bevformer_model import R101_DCN, bevformer

model = bevformer(dict(R101_DCN, out_indices=(3,)), [2048], levels=1, side=150, layers=3)
