# A small net: voxels of 0.8 m, 24 x 32 x 8; the view is no square.
from projects.configs.BEVDet.bevdet_toy import data  # noqa: F401
from projects.configs.FlashOcc.flashocc_toy import model as toy
from projects.configs.flashocc_model import panoptic

model = panoptic(toy, 12.8, 0.8, most=400)
model['aux_centerness_head']['bbox_coder']['pc_range'] = [-12.8, -9.6]
model['aux_centerness_head']['share_conv_channel'] = 16
