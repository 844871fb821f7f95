"""The toy StreamPETR on disk: config, checkpoint, and pictures and infos without nuScenes' tables."""

from __future__ import annotations

from pathlib import Path

import torch

import toy_streampetr as toy
import toy_streampetr_export as exported
from projects.configs.nuscenes_stream import image_augmentation, stream_data
from toy_rig import SOURCE, write_set


def write_config(folder: Path, name: str = 'toy_stream', tail: str = '') -> str:
    """Write the toy's config, its data set at `folder`/set, and return the path; `tail` is appended."""
    image = image_augmentation((toy.HEIGHT, toy.WIDTH), (0.5, 0.6), source=SOURCE)
    data = stream_data(image, root=f'{folder}/set/', infos='toy', workers_per_gpu=0)
    text = (
        f'custom_imports = dict(imports=["mmdeploy_ext.families.mmdet3d_plugin"])\n'
        f'model = {toy.model_cfg()!r}\ndata = {data!r}\n{tail}\n'
    )
    path = folder / f'{name}.py'
    path.write_text(text)
    return str(path)


def write_checkpoint(path: Path, drop: str = '', **more: torch.Tensor) -> str:
    """Write the seeded toy's weights without the keys that begin with `drop`; `more` is added."""
    state = exported.model().state_dict()
    kept = {key: value for key, value in state.items() if not drop or not key.startswith(drop)}
    torch.save(dict(state_dict={**kept, **more}, meta={}), path)
    return str(path)


def write_model(folder: Path) -> Path:
    """Write the toy's config, checkpoint, data set and files of the deploy contract; return the folder."""
    write_config(folder)
    write_checkpoint(folder / 'toy.pth')
    write_set(folder)
    (folder / 'deploy').mkdir()
    exported.write(folder / 'deploy')
    return folder
