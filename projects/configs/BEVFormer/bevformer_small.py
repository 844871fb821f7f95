from projects.configs.nuscenes_bev import CAFFE_NORM, bev_data

_base_ = ['../_base_/models/bevformer_small.py']
data = bev_data(CAFFE_NORM, scale=0.8)
