from projects.configs.nuscenes_bev import command_data
from projects.configs.vad_model import vad

_base_ = []
model = vad()
data = command_data(scale=0.4)
