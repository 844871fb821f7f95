from projects.configs.nuscenes_bev import CAFFE_NORM
from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/petrv2_toy.py']
data = stream_data(
    image_augmentation((96, 256), (0.73, 0.73), source=(198, 352), rand_flip=False),
    CAFFE_NORM,
    root='data/toy_nuscenes/',
    infos='toy_nuscenes2d_temporal_infos',
)
