"""Samples of a test path: from a user function, images, or the config's data set."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import (
    AbsentPackageError,
    ConfigError,
    DataError,
    Mm2OnnxError,
    UsageError,
    one_line,
    root_cause,
)
from mmdeploy_ext.base.source_code import place_of
from mmdeploy_ext.base.user_modules import users_line, users_source
from mmdeploy_ext.proving.inputs import bright, dark
from mmdeploy_ext.proving.parts.part import Tree
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.upstream.models.building import data_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


# A file for `--samples FILE.py:make`, with the keys of the user's pipeline and data set.


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


MOST = 6
"""Default number of a data set's samples."""
TURNS = ((1, 1), (1, -1), (-1, 1))
"""Steps along height and width that make three samples of the package's image."""


def samples_of(cfg: Any, words: Sequence[str] = (), count: int = MOST) -> tuple[list[dict[str, Any]], str]:
    """Return the test path's keyword arguments per sample, and their source.

    Args:
        cfg: mmcv's config.
        words: `FILE.py:function`, or images; (): the config's data set, else the package's image.
        count: maximum of samples of a data set.
    """
    if len(words) == 1 and words[0].rpartition(':')[0].endswith('.py'):
        from mmdeploy_ext.proving.modules import make_samples

        samples = make_samples(words[0])
        for sample in samples:
            if not isinstance(sample, dict):
                raise UsageError(
                    f'--samples {words[0]}: yields a {type(sample).__name__}; expected dicts of '
                    f'the keyword arguments of the test path'
                )
        return samples, words[0]
    if words:
        return [picture_sample(cfg, word) for word in words], f'{len(words)} pictures'
    from mmdeploy_ext.families.evaluate import evaluation

    try:
        dataset = evaluation.build_dataset(cfg)
    except (ConfigError, DataError) as error:
        return _views(cfg, error), "variants of the package's image"
    available = min(count, len(dataset))
    indices = [index * len(dataset) // available for index in range(available)]
    if scenes_of(dataset):
        indices = range(available)  # in a row, for models with memory
    with evaluation.loader_errors():
        loader = evaluation.build_loader(dataset, list(indices), workers_per_gpu=0)
        return [dict(data) for data in loader], f'{len(indices)} of {len(dataset)} samples of data.test'


def scenes_of(dataset: Any) -> bool:
    """Return whether a data set has scenes."""
    infos = getattr(dataset, 'data_infos', None) or [{}]
    return isinstance(infos[0], dict) and 'scene_token' in infos[0]


def _views(cfg: Any, error: Exception) -> list[dict[str, Any]]:
    from mmdeploy_ext.runtime.preprocess.pictures import read_image

    steps = [step['type'] for step in test_pipeline(cfg)]
    if steps[:1] != ['LoadImageFromFile']:
        raise UsageError(
            f'--samples FILE.py:function: is required, because there is no data set ({one_line(error)}). '
            'The function yields the keyword arguments of the test path; --parts samples > samples.py '
            'writes a file with their keys. Configs of nuScenes also read a generated data set: mm2onnx '
            'synthetic nuscenes --out data/nuscenes, then mm2onnx synthetic infos'
        ) from error
    picture, path = read_image(DEFAULT_PICTURE), Path(DEFAULT_PICTURE)
    return [
        picture_sample(cfg, picture[::rows, ::columns].copy(), f'{path.stem}_{index}{path.suffix}')
        for index, (rows, columns) in enumerate(TURNS)
    ]


def picture_sample(cfg: Any, picture: Any, name: str = '') -> dict[str, Any]:
    """Prepare an image, a path or (h, w, 3) uint8 BGR with a name, by the config's test pipeline."""
    from mmcv.parallel import collate
    from mmdet.datasets.pipelines import Compose

    steps = copy.deepcopy(test_pipeline(cfg))
    if isinstance(picture, str | Path):
        data = dict(img_info=dict(filename=str(picture)), img_prefix=None)
    else:
        steps[0]['type'] = 'LoadImageFromWebcam'
        steps.insert(1, functools.partial(dict, filename=name, ori_filename=name))
        data = dict(img=picture)
    try:
        return dict(collate([Compose(steps)(data)], samples_per_gpu=1))
    except Exception as error:
        raise DataError(f'{picture}: cannot be prepared by the test pipeline: {one_line(error)}') from error


def run_test_path(model: torch.nn.Module, sample: dict[str, Any]) -> Any:
    """Run the model's test path on a copy of a sample.

    ConfigError: it raises; names the user's line and keys that the sample lacks.
    """
    try:
        with torch.no_grad():
            return model(**opened(sample))
    except Mm2OnnxError:
        raise
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, AbsentPackageError):
            raise ConfigError(f'the test path: {cause}') from error
        raise ConfigError(
            f'the test path raises {type(cause).__name__}: {one_line(cause)[:300]}{users_line(error)}'
            f'{users_source(error)}{_lacking(model, sample)}'
        ) from error


class _Asked(dict):
    """A sample's dict that records missing keys."""

    def __init__(self, content: dict[Any, Any], absent: list[str]) -> None:
        super().__init__(content)
        self.absent = absent

    def __missing__(self, key: Any) -> Any:
        self.absent.append(str(key))
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self.absent.append(str(key))
        return super().get(key, default)


def _lacking(model: torch.nn.Module, sample: dict[str, Any]) -> str:
    """Run the test path again, and return the missing keys in words."""
    absent: dict[str, list[str]] = {}

    def watched(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            entries = {key: watched(entry, name) for key, entry in value.items()}
            return _Asked(entries, absent.setdefault(name, []))
        return type(value)(watched(entry, name) for entry in value) if type(value) in (list, tuple) else value

    kwargs = opened(sample)
    with contextlib.suppress(Exception), torch.no_grad():
        model(**{name: watched(value, name) for name, value in kwargs.items()})
    texts = [f'{name} has no {", ".join(dict.fromkeys(keys))}' for name, keys in absent.items() if keys]
    methods = (getattr(model, name, None) for name in ('simple_test', 'forward_test'))
    taken = {key: None for method in methods if method for key in inspect.signature(method).parameters}
    others = [key for key in taken if key not in kwargs and key not in ('kwargs', 'args')]
    if others:
        texts.append(f'the test path also has the arguments {", ".join(others)}')
    advice = '--parts samples > samples.py writes a file for --samples samples.py:make'
    return f'; of the sample: {"; ".join([*texts, advice])}'


def opened(sample: dict[str, Any]) -> dict[str, Any]:
    """Copy a sample's keyword arguments without mmcv's containers."""
    from mmcv.parallel import DataContainer, scatter_kwargs

    kwargs = copy.deepcopy(sample)
    if any(isinstance(leaf, DataContainer) for leaf in Tree.of(kwargs).values):
        _, (kwargs,) = scatter_kwargs((), kwargs, [-1])
        kwargs.setdefault('rescale', True)
    kwargs.setdefault('return_loss', False)
    return kwargs


def lit_samples(sample: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return 'dark' and 'bright' -> the sample with such images; {}: no images of three channels."""
    tree = Tree.of(opened(sample))
    images = {
        name: tensor
        for name, tensor in tree.tensors.items()
        if name.startswith('img') and tensor.is_floating_point() and tensor.shape[-3:-2] == (3,)
    }
    norms = {key: _of_channels(tree, f'img_norm_cfg.{key}') for key in ('mean', 'std')}
    views = dict(dark=dark, bright=bright) if images else {}
    return {
        title: tree.nested({name: _changed(tensor, view, **norms) for name, tensor in images.items()})
        for title, view in views.items()
    }


def _of_channels(tree: Tree, name: str) -> np.ndarray | None:
    found = [value for key, value in tree.items() if key.endswith(name) and np.size(value) == 3]
    return np.asarray(found[0], np.float32) if found else None


def _changed(
    tensor: torch.Tensor,
    view: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray | None,
    std: np.ndarray | None,
) -> torch.Tensor:
    """Return images (..., 3, H, W) changed as pixels in 0..255; without a norm they are 0..255."""
    if mean is None or std is None:
        low, high = float(tensor.min()), float(tensor.max())
        mean, std = -255 * low / max(high - low, 1e-6), 255 / max(high - low, 1e-6)
    pictures = tensor.detach().cpu().numpy().reshape(-1, *tensor.shape[-3:]).transpose(0, 2, 3, 1)
    changed = [view(np.ascontiguousarray(picture * std + mean, np.float32)) for picture in pictures]
    values = (np.stack(changed) - mean) / std
    return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32)).reshape(tensor.shape).to(tensor)
