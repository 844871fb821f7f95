from projects.configs.nuscenes_stream import VOV_NORM, image_augmentation, stream_data

_base_ = ['../_base_/models/petrv2_vovnet.py']
data = stream_data(image_augmentation((320, 800), (0.47, 0.625)), VOV_NORM)
