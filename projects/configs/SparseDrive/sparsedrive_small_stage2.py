from projects.configs.nuscenes_drive import drive_data
from projects.configs.sparsedrive_model import sparsedrive

_base_ = []
model = sparsedrive()
data = drive_data(size=(256, 704))
