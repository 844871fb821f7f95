# The toy without a memory and without a depth network.
from projects.configs.BEVDet.bevdet_toy import R18, SIZE, data  # noqa: F401
from projects.configs.bevdet_model import bevdet

model = bevdet(
    R18, [64, 128], neck=32, channels=16, depth_step=3.0, size=SIZE, side=12.8, view=32, most=60, shared=16
)
