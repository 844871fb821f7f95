from projects.configs.nuscenes_bev import bev_data

_base_ = ['../_base_/models/bevformer_tiny.py']
data = bev_data(scale=0.5)
