"""The `data` section of Sparse4D's configs, for tests: they differ in the sizes of pictures and input."""

from typing import Any

from projects.configs.nuscenes_stream import CLASS_NAMES, IMG_NORM, MODALITY

META_KEYS = ['T_global', 'T_global_inv', 'timestamp', 'scene_token', 'sample_idx', 'filename']


def track_data(
    size: tuple[int, int],
    root: str = 'data/nuscenes/',
    infos: str = 'nuscenes2d_temporal_infos',
    source: tuple[int, int] = (900, 1600),
) -> dict[str, Any]:
    """Return the whole `data` section.

    Args:
        size: (height, width) of the input, px.
        root: of the data set.
        infos: the info file is `<root><infos>_val.pkl`, as `tools/create_data.py` makes it.
        source: (height, width) of the pictures, px.
    """
    pipeline = [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='ResizeCropFlipImage'),
        dict(type='NormalizeMultiviewImage', **IMG_NORM),
        dict(type='NuScenesSparse4DAdaptor'),
        dict(type='Collect', keys=['img', 'timestamp', 'projection_mat', 'image_wh'], meta_keys=META_KEYS),
    ]
    test = dict(
        type='NuScenes3DDetTrackDataset',
        data_root=root,
        ann_file=f'{root}{infos}_val.pkl',
        pipeline=pipeline,
        classes=CLASS_NAMES,
        modality=MODALITY,
        test_mode=True,
        data_aug_conf=dict(final_dim=size, bot_pct_lim=(0.0, 0.0), H=source[0], W=source[1]),
    )
    return dict(samples_per_gpu=1, workers_per_gpu=4, val=test, test=test)
