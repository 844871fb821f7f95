from projects.configs.nuscenes_stream import VOV_NORM, image_augmentation, stream_data

_base_ = ['../_base_/models/petr_vovnet.py']
data = stream_data(image_augmentation((640, 1600), (0.94, 1.25)), VOV_NORM)
