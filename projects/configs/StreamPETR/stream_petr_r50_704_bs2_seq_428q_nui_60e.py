from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/stream_petr_r50_428q.py', '../_base_/plugin_runtime.py']
data = stream_data(image_augmentation((256, 704), (0.38, 0.55)))
