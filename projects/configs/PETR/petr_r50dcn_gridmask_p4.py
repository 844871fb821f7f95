from projects.configs.nuscenes_bev import CAFFE_NORM
from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/petr_r50_p4.py']
data = stream_data(image_augmentation((512, 1408), (0.8, 1.0)), CAFFE_NORM)
