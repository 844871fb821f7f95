"""Samples of a test path: of a function of the user's, pictures, or the data set of the config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ConfigError, DataError, UsageError, one_line, root_cause
from mmdeploy_ext.core.user_modules import users_line
from mmdeploy_ext.cutting.trees import Tree
from mmdeploy_ext.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 6
"""Samples of a data set that are recorded by default."""
TURNS = ((1, 1), (1, -1), (-1, 1))
"""Steps along height and width with which the package's picture is read, so that one gives three samples."""


def samples_of(cfg: Any, words: Sequence[str] = (), count: int = MOST) -> tuple[list[dict[str, Any]], str]:
    """Return the keyword arguments of the test path per sample, and where they come from.

    Args:
        cfg: mmcv's config.
        words: `FILE.py:function`, or pictures; (): the config's data set, else the package's picture.
        count: largest number of samples of a data set.
    """
    if len(words) == 1 and words[0].rpartition(':')[0].endswith('.py'):
        from mmdeploy_ext.proving.modules.loading import make_samples

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
    from mmdeploy_ext.evaluate import evaluation

    try:
        dataset = evaluation.build_dataset(cfg)
    except (ConfigError, DataError) as error:
        return _views(cfg, error), "views of the package's picture"
    available = min(count, len(dataset))
    indices = [index * len(dataset) // available for index in range(available)]
    if scenes_of(dataset):
        indices = range(available)  # in a row, for models that remember
    with evaluation.loader_errors():
        loader = evaluation.build_loader(dataset, list(indices), workers_per_gpu=0)
        return [dict(data) for data in loader], f'{len(indices)} of {len(dataset)} samples of data.test'


def scenes_of(dataset: Any) -> bool:
    """Return whether a data set has scenes."""
    infos = getattr(dataset, 'data_infos', None) or [{}]
    return isinstance(infos[0], dict) and 'scene_token' in infos[0]


def _views(cfg: Any, error: Exception) -> list[dict[str, Any]]:
    from mmdeploy_ext.preprocess.pictures import read_image

    steps = [step['type'] for step in test_pipeline(cfg)]
    if steps[:1] != ['LoadImageFromFile']:
        raise UsageError(
            f'--samples FILE.py:function: is needed, since there is no data set ({one_line(error)}); the '
            f'function yields the keyword arguments of the test path. Configs of nuScenes read a generated '
            f'set, too: mm2onnx synthetic nuscenes --root data/nuscenes, then mm2onnx synthetic infos'
        ) from error
    picture = read_image(DEFAULT_PICTURE)
    return [picture_sample(cfg, picture[::rows, ::columns].copy()) for rows, columns in TURNS]


def picture_sample(cfg: Any, picture: Any) -> dict[str, Any]:
    """Return a picture, a path or (h, w, 3) uint8 BGR, prepared by the config's test pipeline."""
    from mmcv.parallel import collate
    from mmdet.datasets.pipelines import Compose

    steps = copy.deepcopy(test_pipeline(cfg))
    if isinstance(picture, str | Path):
        data = dict(img_info=dict(filename=str(picture)), img_prefix=None)
    else:
        steps[0]['type'] = 'LoadImageFromWebcam'
        data = dict(img=picture)
    try:
        return dict(collate([Compose(steps)(data)], samples_per_gpu=1))
    except Exception as error:
        raise DataError(f'{picture}: cannot be prepared by the test pipeline: {one_line(error)}') from error


def run_test_path(model: torch.nn.Module, sample: dict[str, Any]) -> Any:
    """Run the model's test path on a copy of a sample; ConfigError: it raises, with the user's line."""
    from mmcv.parallel import DataContainer, scatter_kwargs

    from mmdeploy_ext.core.errors import Mm2OnnxError

    kwargs = copy.deepcopy(sample)
    holds_containers = any(isinstance(leaf, DataContainer) for leaf in Tree.of(kwargs).values)
    if holds_containers:
        _, (kwargs,) = scatter_kwargs((), kwargs, [-1])
        kwargs.setdefault('rescale', True)
    kwargs.setdefault('return_loss', False)
    try:
        with torch.no_grad():
            return model(**kwargs)
    except Mm2OnnxError:
        raise
    except Exception as error:
        cause = root_cause(error)
        raise ConfigError(
            f'the test path raises {type(cause).__name__}: {one_line(cause)[:300]}{users_line(error)}'
        ) from error
