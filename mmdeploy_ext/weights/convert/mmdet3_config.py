"""A config of mmdet 3 as a config of mmdet 2.28, to export, prove and test with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import is_config3
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.weights.convert.mmdet3_model import PLUGINS, model2, parts, without_scope
from mmdeploy_ext.weights.convert.mmdet3_pipeline import pipeline2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DATASETS = ('CocoDataset', 'CityscapesDataset', 'DeepFashionDataset', 'LVISV05Dataset', 'LVISV1Dataset')
"""Data sets that both have, with one file of annotations and one folder of pictures."""
DATASET_KEYS = {
    *('type', 'data_root', 'ann_file', 'data_prefix', 'test_mode', 'pipeline', 'metainfo', 'backend_args'),
    *('filter_cfg', 'return_classes'),
}


def config2(cfg: Any) -> Any:
    """Return the config of mmdet 2.28: the model, the test pipeline and the data set of tests.

    What only training and mmengine's Runner read (`optim_wrapper`, `default_hooks`, ...) is left out.

    Args:
        cfg: of `read_config3`.

    Raises:
        ConfigError: names the file, and the part or key that mmdet 2.28 has not.
    """
    from mmcv import Config

    model, name = cfg.get('model'), cfg.filename
    if not isinstance(model, dict):
        raise ConfigError(f'{name}: model={model!r}, expected a dict with `type`')
    if not is_config3(cfg):
        raise ConfigError(
            f'{name}: is no config of mmdet 3: it has neither data_preprocessor nor test_dataloader'
        )
    try:
        own = model2(_plain(model))  # first: what is refused by the name of a detector
        preprocessor = without_scope('model.data_preprocessor', _preprocessor(cfg))
        steps = without_scope('test_pipeline', _steps(cfg))
        data = dict(test=_dataset(cfg, pipeline2(steps, preprocessor)))
        plugin = PLUGINS.get(own['type'])
        imports = dict(custom_imports=dict(imports=[plugin], allow_failed_imports=False)) if plugin else {}
        result = dict(model=own, data=data, **imports)
    except ConfigError as error:
        raise ConfigError(f'{name}: {error}') from error
    check_known(name, result['model'])
    return Config(result, cfg_text=cfg.text, filename=name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _preprocessor(cfg: Any) -> dict[str, Any]:
    found = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return _plain(found)


def _test_dataset(cfg: Any) -> dict[str, Any]:
    loader = cfg.get('test_dataloader') or {}
    return _plain(loader.get('dataset') or {}) if isinstance(loader, dict) else {}


def _steps(cfg: Any) -> list[dict[str, Any]]:
    found = _test_dataset(cfg).get('pipeline') or _plain(cfg.get('test_pipeline'))
    if not found:
        raise ConfigError('has neither test_dataloader.dataset.pipeline nor test_pipeline; expected one')
    return found


def _dataset(cfg: Any, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `data.test`; of a kind of data set that is not known here only the classes are taken."""
    given = without_scope('test_dataloader.dataset', {**_test_dataset(cfg), 'pipeline': []})
    names = given.get('metainfo') or {}
    classes = names.get('classes') or names.get('CLASSES')
    own = dict(classes=tuple(classes)) if classes else {}
    if given.get('type') not in DATASETS:
        return dict(type='CocoDataset', ann_file='annotations.json', img_prefix='', **own, pipeline=pipeline)
    if other := sorted(given.keys() - DATASET_KEYS):
        raise ConfigError(f'test_dataloader.dataset.{other[0]}={given[other[0]]!r} is not known here')
    if given.get('backend_args'):
        raise ConfigError(
            f'test_dataloader.dataset.backend_args={given["backend_args"]!r}: expected None, local files'
        )
    root = Path(given.get('data_root') or '')
    prefix = (given.get('data_prefix') or {}).get('img', '')
    return dict(
        type=given['type'],
        ann_file=str(root / given.get('ann_file', '')),
        img_prefix=str(root / prefix),
        **own,
        pipeline=pipeline,
    )


def check_known(name: str, model: Mapping[str, Any]) -> None:
    """Refuse parts that mmdet 2.28 has not.

    Raises:
        ConfigError: names the file, the key and the type.
    """
    known = set(_known_types())
    for path, part in parts(dict(model), 'model'):
        if (
            part['type'][:1].isupper() and part['type'] not in known
        ):  # others are options: nms, conv, dilation
            raise ConfigError(f'{name}: {path}.type={part["type"]!r}: mmdet 2.28 has no part of this name')


def _known_types() -> Iterable[str]:
    """Yield the names of all parts that a model of mmdet 2.28 is built of."""
    import mmcv.cnn.bricks.registry as bricks
    import mmdet.core  # noqa: F401  (assigners, coders and samplers register)
    from mmcv.cnn import MODELS as CNN
    from mmcv.utils import Registry
    from mmdet.core import bbox, mask  # noqa: F401
    from mmdet.core.anchor.builder import PRIOR_GENERATORS
    from mmdet.core.bbox.builder import BBOX_ASSIGNERS, BBOX_CODERS, BBOX_SAMPLERS
    from mmdet.core.bbox.iou_calculators.builder import IOU_CALCULATORS
    from mmdet.core.bbox.match_costs.builder import MATCH_COST
    from mmdet.models.builder import MODELS
    from mmdet.models.utils.builder import LINEAR_LAYERS, TRANSFORMER

    found = [MODELS, CNN, LINEAR_LAYERS, TRANSFORMER, PRIOR_GENERATORS, IOU_CALCULATORS, MATCH_COST]
    found += [BBOX_ASSIGNERS, BBOX_CODERS, BBOX_SAMPLERS]
    found += [one for one in vars(bricks).values() if isinstance(one, Registry)]
    yield from (
        'Pretrained',
        'Normal',
        'Xavier',
        'Kaiming',
        'Constant',
        'Uniform',
        'TruncNormal',
        'Caffe2Xavier',
    )
    yield from ('RoIAlign', 'RoIPool', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack', 'SimpleRoIAlign')
    for registry in found:
        yield from registry.module_dict
