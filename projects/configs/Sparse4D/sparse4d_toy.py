# The same model in small: ResNet-18 of 16 base channels, 32 channels, 60 instances, 3 refinements.
from projects.configs.nuscenes_track import track_data
from projects.configs.sparse4d_model import sparse4d

_base_ = []
R18 = dict(
    type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(1, 2, 3), norm_eval=True,
    style='pytorch',
)  # fmt: skip
model = sparse4d(
    R18,
    (32, 64, 128),
    channels=32,
    groups=4,
    encoder=(16, 4, 4, 8),
    layers=3,
    instances=60,
    kept=40,
    boxes=30,
    learned_points=2,
)
data = track_data(
    size=(96, 176), root='data/toy_nuscenes/', infos='toy_nuscenes2d_temporal_infos', source=(198, 352)
)
