from projects.configs.nuscenes_bev import bev_data

_base_ = ['../_base_/models/bevformer_toy.py']
data = bev_data(
    scale=0.5, root='data/toy_nuscenes/', infos='toy_nuscenes2d_temporal_infos', source=(352, 198)
)
