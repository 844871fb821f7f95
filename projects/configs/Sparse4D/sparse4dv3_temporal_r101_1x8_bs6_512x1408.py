from projects.configs.nuscenes_track import track_data
from projects.configs.sparse4d_model import R50, sparse4d

_base_ = []
model = sparse4d(dict(R50, depth=101))
data = track_data(size=(512, 1408))
