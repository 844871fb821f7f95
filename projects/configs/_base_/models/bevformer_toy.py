# The same model in small: ResNet-18 of 16 base channels, 64 channels, a view of 20 x 20, 2 + 2 layers.
from projects.configs.bevformer_model import bevformer

_base_ = []
R18 = dict(
    type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(2, 3), norm_eval=True,
    style='pytorch',
)  # fmt: skip
model = bevformer(
    R18,
    [64, 128],
    levels=2,
    side=20,
    layers=2,
    channels=64,
    heads=4,
    decoder_layers=2,
    queries=60,
    max_num=50,
    pc_range=[-32.0, -32.0, -5.0, 32.0, 32.0, 3.0],
)
