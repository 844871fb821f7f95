"""A file for `--samples FILE.py:make`, with the keys of the user's pipeline and data set."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.source_code import place_of
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.upstream.models.building import data_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CAMERAS = 6
SIZES = ('input_size', 'final_dim', 'img_scale', 'size', 'scale')
"""Pipeline entries with a size; only `img_scale` and `scale` start with the width."""
RIG = ('lidar2img', 'lidar2cam', 'cam2img', 'cam_intrinsic', 'intrinsics', 'extrinsics', 'ego2img')
"""Keys of a matrix for each camera."""
ENTRIES = {
    'filename': "f'{index}.jpg'",
    'ori_filename': "f'{index}.jpg'",
    'ori_shape': '(HEIGHT, WIDTH, 3)',
    'img_shape': '(HEIGHT, WIDTH, 3)',
    'pad_shape': '(HEIGHT, WIDTH, 3)',
    'scale_factor': 'np.ones(4, np.float32)',
    'flip': 'False',
    'flip_direction': 'None',
    'pcd_horizontal_flip': 'False',
    'pcd_vertical_flip': 'False',
    'pcd_scale_factor': '1.0',
    'pcd_trans': 'np.zeros(3, np.float32)',
    'transformation_3d_flow': '[]',
    'box_mode_3d': 'Box3DMode.LIDAR',
    'box_type_3d': 'LiDARInstance3DBoxes',
    'img_norm_cfg': 'dict(mean=np.zeros(3, np.float32), std=np.ones(3, np.float32), to_rgb=True)',
    'sample_idx': "f'sample {index}'",
    'scene_token': "'scene'",
    'prev_idx': "''",
    'next_idx': "''",
    'timestamp': '0.5 * index',
    'can_bus': 'np.zeros(18)',
    **dict.fromkeys(RIG, '[*map(matrix, range(CAMERAS))]'),
}
"""Key of the metas -> its value in the file; you fill in others."""
PER_CAMERA = ('filename', 'ori_shape', 'img_shape', 'pad_shape')
TENSORS = {
    'img': 'torch.rand(1, 3, HEIGHT, WIDTH, generator=generator)',
    'points': '[torch.rand(2000, 5, generator=generator) * 40 - 20]',
    **dict.fromkeys(RIG, 'torch.tensor(np.stack([*map(matrix, range(CAMERAS))]))[None].float()'),
}
SEVERAL = 'torch.rand(1, CAMERAS, 3, HEIGHT, WIDTH, generator=generator)'
UNKNOWN = 'None,  # EDIT'
MATRIX = '''

def matrix(camera):
    """Return the projection (4, 4) of points to pixels of a camera that looks outwards."""  # EDIT
    angle = 2 * np.pi * camera / CAMERAS
    forward, left = [np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]
    axes = np.array([[-left[0], -left[1], 0, 0], [0, 0, -1, 0], [*forward, 0, 0], [0, 0, 0, 1]])
    pixels = np.diag([WIDTH / 2, WIDTH / 2, 1, 1])
    pixels[:2, 2] = WIDTH / 2, HEIGHT / 2
    return pixels @ axes
'''


def skeleton_of(cfg: Any) -> str:
    """Return a file's text; its `make` yields samples for a config's test path."""
    steps = list(steps_of(test_pipeline(cfg)))
    collects = [step for step in steps if 'Collect' in str(step.get('type'))] or [{}]
    keys, meta_keys = _collected(collects[-1])
    dataset = data_class(test_dataset(cfg).get('type'), 'DATASETS')
    added = list(dict.fromkeys(_added(dataset))) if dataset else []
    has_cameras = any('MultiView' in str(step.get('type')) for step in steps)
    has_cameras |= bool({*RIG} & {*keys, *meta_keys, *added})
    height, width = _size(steps)
    metas = list(dict.fromkeys([*meta_keys, *(key for key in added if key in ENTRIES)]))
    rest = [key for key in added if key not in metas]
    lines = [
        f'"""Samples of {getattr(cfg, "filename", "the config")}; use: --samples FILE.py:make.',
        '',
        f'The test pipeline collects {", ".join(keys)}; metas: {", ".join(meta_keys)}.',
    ]
    if dataset:
        lines += [f'{dataset.__name__} ({":".join(map(str, place_of(dataset)))}) adds {", ".join(added)}.']
    lines += ['Values are examples; change the lines marked EDIT if your model needs others.', '"""', '']
    lines += ['import numpy as np', 'import torch']
    if {'box_mode_3d', 'box_type_3d'} & {*metas}:
        lines += ['from mmdet3d.core.bbox import Box3DMode, LiDARInstance3DBoxes']
    names = 'CAMERAS, HEIGHT, WIDTH, SAMPLES'
    lines += ['', f'{names} = {CAMERAS if has_cameras else 1}, {height}, {width}, 3']
    text = '\n'.join(lines) + '\n' + (MATRIX if has_cameras else '')
    text += '\n\ndef metas(index):\n    return dict(\n'
    text += ''.join(f'        {key}={_entry(key, has_cameras)}\n' for key in metas)
    text += ''.join(f'        # {key}=...,  # of the data set\n' for key in rest)
    text += '    )\n\n\ndef make():\n    """Yield the keyword arguments of the test path."""\n'
    text += '    for index in range(SAMPLES):\n        generator = torch.Generator().manual_seed(index)\n'
    text += '        yield dict(\n'
    for key in keys:
        value = SEVERAL if key == 'img' and has_cameras else TENSORS.get(key)
        text += f'            {key}=[{value}],\n' if value else f'            {key}={UNKNOWN}\n'
    return text + '            img_metas=[[metas(index)]],\n            rescale=True,\n        )\n'


def _collected(step: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the keys of tensors and of metas of a step such as `Collect3D`."""
    kind = data_class(step.get('type'), 'PIPELINES')
    defaults = inspect.signature(kind).parameters if kind else {}
    found = []
    for name in ('keys', 'meta_keys'):
        default = defaults[name].default if name in defaults else ()
        values = step.get(name, default)
        found.append([str(value) for value in values] if isinstance(values, list | tuple) else [])
    return found[0], found[1]


def _added(dataset: type) -> Iterator[str]:
    """Yield the keys that the user's data set writes into samples."""
    for name, value in vars(dataset).items():
        if not inspect.isfunction(value) or not name.startswith(('get_data', 'prepare', 'union', 'pre_pipe')):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
                yield from (keyword.arg for keyword in node.keywords if keyword.arg)
            is_written = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
            if is_written and isinstance(getattr(node.slice, 'value', None), str):
                yield node.slice.value


def _size(steps: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return height and width of a pipeline's images, multiples of 32; default 256 x 704."""
    for step in steps:
        for name in SIZES:
            holder = step if name in step else step.get('data_aug_conf') or step.get('data_config') or {}
            value = holder.get(name)
            value = value[0] if isinstance(value, list) and value and isinstance(value[0], tuple) else value
            if isinstance(value, list | tuple) and len(value) == 2 and all(side > 1 for side in value):
                sides = value[::-1] if 'scale' in name else value
                return tuple(-(-int(side) // 32) * 32 for side in sides)
    return 256, 704


def _entry(key: str, has_cameras: bool) -> str:
    value = ENTRIES.get(key)
    if value is None:
        return UNKNOWN
    return f'[{value}] * CAMERAS,' if has_cameras and key in PER_CAMERA else f'{value},'
