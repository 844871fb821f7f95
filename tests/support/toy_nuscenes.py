"""A small nuScenes that is generated with its info files: test loops and metrics run over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

INFOS = 'toy_nuscenes2d_temporal_infos_val.pkl'
"""Name of the info file of the scenes for validation, with cameras and times."""


def write(folder: Path, **options: Any) -> Path:
    """Generate the data set with one scene for training; return its folder, which is in `folder`.

    `options` are further ones of `SetOptions`.
    """
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.synthetic.nuscenes import SetOptions, ensure_toy_nuscenes
    from mmdeploy_ext.synthetic.nuscenes_infos import create_infos

    root = folder / 'toy_nuscenes'
    ensure_toy_nuscenes(root, SetOptions(train_scenes=1, **options), jobs=1, quiet=True)
    create_infos(str(root), str(root), 'toy_nuscenes', 'v1.0-trainval', 0)
    return root
