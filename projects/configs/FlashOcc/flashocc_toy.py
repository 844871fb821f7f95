# A small net: voxels of 0.8 m, 24 x 32 x 8; the view is no square.
from projects.configs.BEVDet.bevdet_toy import R18, SIZE, data  # noqa: F401
from projects.configs.flashocc_model import flashocc

model = flashocc(
    R18, [64, 128], neck=32, channels=16, depth_step=3.0, widths=(32, 64, 64), view=32, size=SIZE, side=12.8,
    cell=0.8, heights=8,
)  # fmt: skip
model['img_view_transformer']['grid_config']['y'] = [-9.6, 9.6, 0.8]
