# The same model in small: ResNet-18 of 16 base channels, 32 channels, 12 x 12 cells, 40 objects, 12 lines.
from projects.configs.nuscenes_bev import command_data
from projects.configs.vad_model import vad

_base_ = []
R18 = dict(
    type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(3,), norm_eval=True,
    style='pytorch',
)  # fmt: skip
model = vad(R18, 128, channels=32, heads=4, side=12, layers=2, queries=40, lines=12, boxes=20, most_lines=10)
data = command_data(
    scale=0.5, root='data/toy_nuscenes/', infos='toy_nuscenes2d_temporal_infos', source=(352, 198)
)
