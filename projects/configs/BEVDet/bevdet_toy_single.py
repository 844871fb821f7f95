# The toy without a memory and without a depth network; a view of 24 rows and 32 columns.
from projects.configs.BEVDet.bevdet_toy import R18, SIZE, data  # noqa: F401
from projects.configs.bevdet_model import bevdet

model = bevdet(
    R18, [64, 128], neck=32, channels=16, depth_step=3.0, size=SIZE, side=12.8, view=32, most=60, shared=16
)
model['img_view_transformer']['grid_config']['y'] = [-9.6, 9.6, 0.8]
model['pts_bbox_head']['bbox_coder']['pc_range'] = model['test_cfg']['pts']['pc_range'] = [-12.8, -9.6]
