from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/stream_petr_r50.py', '../_base_/schedules/nuscenes_90e.py']
data = stream_data(
    image_augmentation((256, 704), (0.38, 0.55)),
    [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    use_valid_flag=True,
    filter_empty_gt=False,
)
