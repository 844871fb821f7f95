from projects.configs.sparse4d_model import sparse4d

model = sparse4d()
