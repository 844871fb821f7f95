from projects.configs.nuscenes_track import track_data

_base_ = ['../_base_/models/sparse4dv3_r50.py']
data = track_data(size=(256, 704))
