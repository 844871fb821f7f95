# Both models in one small net: a depth network, two frames before, a view of 20 x 20.
from projects.configs.bevdet_model import bevdet, bevdet_data

R18 = dict(
    type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(2, 3), norm_eval=True,
    style='pytorch',
)  # fmt: skip
SIZE = (96, 176)
model = bevdet(
    R18,
    [64, 128],
    neck=32,
    channels=16,
    depth_step=3.0,
    adjacent=2,
    size=SIZE,
    side=12.8,
    view=32,
    most=60,
    shared=16,
)
data = bevdet_data(SIZE, (198, 352), root='data/toy_nuscenes/', infos='toy_nuscenes2d_temporal_infos')
