from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/stream_petr_toy.py', '../_base_/plugin_runtime.py']
data = stream_data(
    image_augmentation((96, 256), (256 / 352, 256 / 352), source=(198, 352), rand_flip=False),
    root='data/toy_nuscenes/',
    infos='toy_nuscenes2d_temporal_infos',
    workers_per_gpu=1,
)
