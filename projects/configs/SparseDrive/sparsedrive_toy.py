# The same model in small: ResNet-18 of 16 base channels, 32 channels, 40 instances, 12 lines, 2 refinements.
from projects.configs.nuscenes_drive import drive_data
from projects.configs.sparsedrive_model import sparsedrive

_base_ = []
R18 = dict(
    type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(1, 2, 3), norm_eval=True,
    style='pytorch',
)  # fmt: skip
model = sparsedrive(
    R18,
    (32, 64, 128),
    channels=32,
    groups=4,
    encoder=(16, 4, 4, 8),
    layers=2,
    plan_layers=1,
    instances=(40, 24),
    lines=(12, 5),
    chosen=(8, 4),
    boxes=20,
    learned_points=(2, 1),
    last_map=(4, 6),
)
data = drive_data(
    size=(96, 176), root='data/toy_nuscenes/', infos='toy_nuscenes2d_temporal_infos', source=(198, 352)
)
