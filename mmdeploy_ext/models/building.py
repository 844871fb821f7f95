"""The model of a config, and its head."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.source_code import users_method
from mmdeploy_ext.core.unregistered import unregistered
from mmdeploy_ext.core.user_modules import users_line

if TYPE_CHECKING:
    import torch

SAMPLING = ('__getitem__', 'pre_pipeline', 'prepare_test_img', 'prepare_test_data', 'get_data_info')
"""Methods of data sets of mmdet and mmdet3d that decide what is in a test sample."""
NOT_REGISTERED = 'is not in the'
"""What mmcv says of a type that no registry has."""
HEAD_KEYS = ('query_head', 'bbox_head', 'mask_head', 'pts_bbox_head')
"""Attributes of detectors that may hold the head that gives the results; the first that is there counts."""


def names_of_class(registry: Any, name: Any) -> list[str]:
    """Return `name`, then the names of the class registered by it and of its bases; without one only `name`.

    `registry` is one of mmcv's. Families compare names, not classes, so that a class of the user's repository
    counts as one of a library if it is derived from it, or is a copy of it with the same name.
    """
    part_class = registered_class(registry, name)
    if part_class is None:
        return [str(name)]
    return [str(name), *(base.__name__ for base in part_class.__mro__)]


def data_class(kind: Any, registry: str) -> type | None:
    """Return the class that is built for the `type` of a data set, or of a step of a pipeline.

    If mmdet3d is imported, its registry comes before that of mmdet, as in its builders.

    Args:
        kind: the `type` of a config; a class is returned as it is.
        registry: 'DATASETS' or 'PIPELINES'.

    Returns:
        The class; None if neither registry has the type.
    """
    return next(iter(data_classes(kind, registry)), None)


def data_classes(kind: Any, registry: str) -> list[type]:
    """Return the classes that mmdet3d, if it is imported, and mmdet have for a `type`, see `data_class`.

    A pipeline whose steps are all in mmdet's registry is built from that one, whatever mmdet3d has.
    """
    if isinstance(kind, type):
        return [kind]
    from mmdet.datasets import builder

    builders = filter(None, (sys.modules.get('mmdet3d.datasets.builder'), builder))
    classes = (vars(module)[registry].get(str(kind)) for module in builders)
    return [registered for registered in classes if isinstance(registered, type)]


def makes_samples(dataset: type) -> bool:
    """Return whether the user's code in a class of data sets decides what is in a test sample.

    An `__init__` of the user's does if it has a `pipeline` of its own, which it may change.
    """
    if any(users_method(dataset, name) for name in SAMPLING):
        return True
    code = getattr(dataset.__init__, '__code__', None)
    names = (*code.co_names, *code.co_varnames) if code else ()
    return 'pipeline' in names and bool(users_method(dataset, '__init__'))


def registered_class(registry: Any, name: Any) -> type | None:
    """Return the class of a name in `registry`, which is one of mmcv's, or in mmdet's registry of models.

    None if neither has the name, or it is that of a function. mmdet3d's builders of detectors, backbones,
    necks and heads look in both, in this order, so that a repository may register its own with either
    library. Before mmdet 2.11, beside which there is no mmdet3d, mmdet has no such registry.
    """
    from mmdet.models import builder

    models = getattr(builder, 'MODELS', None)
    registered = registry.get(str(name)) or (models and models.get(str(name)))
    return registered if isinstance(registered, type) else None


def head_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the head that gives the results; mmdet's SOLO has a `bbox_head` of None beside it.

    ConfigError: there is none.
    """
    heads = [getattr(model, key, None) for key in HEAD_KEYS]
    for head in heads:
        if head is not None:
            return head
    raise ConfigError(
        f'{type(model).__name__}: has none of {", ".join(HEAD_KEYS)}; a family whose model has other parts '
        f'states what is taken from its head (num_classes, limits) itself'
    )


def has_head(model: torch.nn.Module) -> bool:
    """Return whether a model has a head in one of `HEAD_KEYS`; one of two stages has other parts."""
    return any(getattr(model, key, None) is not None for key in HEAD_KEYS)


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """Leave out messages of mmcv: heads that initialise themselves have some for each of their weights."""
    logger = logging.getLogger('mmcv')
    level, logger.level = logger.level, logging.WARNING
    try:
        yield
    finally:
        logger.level = level


@contextlib.contextmanager
def _empty_checkpoints() -> Iterator[None]:
    """Let mmcv's functions that read a checkpoint give one without weights, and open no file."""
    from mmcv.runner.checkpoint import CheckpointLoader

    with patched(CheckpointLoader, load_checkpoint=lambda *args, **kwargs: {}):
        yield


def built_unpretrained(build: Callable[[], torch.nn.Module], backbone: Any) -> torch.nn.Module:
    """Return the model that `build` makes, whose backbone reads no weights.

    In `backbone`, the dict of its settings, `pretrained` and `init_cfg`, which some read when they are built,
    become None; empty settings, or None for a model without such a part, stay as they are. Detectors of mmdet
    before 2.14 always gave their backbone a `pretrained`; one that reads it and has none gets None, too.
    A backbone that cannot be built without them, such as RepViT's, gets them as they are, and a checkpoint
    without weights from mmcv.
    """
    checkpoints = {key: backbone[key] for key in ('pretrained', 'init_cfg') if backbone and backbone.get(key)}
    for key in checkpoints:
        backbone[key] = None
    try:
        return build()
    except Exception as error:
        if checkpoints and NOT_REGISTERED not in str(error):
            backbone.update(checkpoints)
            with _empty_checkpoints():
                return build()
        if not isinstance(error, KeyError) or not backbone or 'pretrained' in backbone:
            raise
        if 'pretrained' not in str(error):
            raise
        backbone['pretrained'] = None
        return build()


def build_without_weights(
    cfg: Any, build: Callable[..., torch.nn.Module], backbone: str = ''
) -> torch.nn.Module:
    """Return the model of a config in evaluation mode, without the weights that training would start from.

    `build` is `build_detector` or `build_model` of a library, `backbone` the key of a part that would load
    pretrained weights of its own, '' if there is none; its `init_cfg` and `pretrained` become None in `cfg`
    itself, see `built_unpretrained`.

    ConfigError: it cannot be built; the message names the file, the reason and, if a line of a user's code
    raised it, that line.
    """
    from mmdeploy_ext.compat.plain_kernels import use_plain_attention

    model_cfg = cfg.model.copy()
    model_cfg.pop('pretrained', None)
    part = model_cfg.get(backbone) or {}  # a part that is None is not there
    try:
        with warnings.catch_warnings(), _without_progress():
            warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
            model = built_unpretrained(lambda: build(model_cfg, test_cfg=cfg.get('test_cfg')), part)
            model.eval()  # returns None for ImVoteNet of mmdet3d 1.0.0rc6
            use_plain_attention(model)
            return model
    except Exception as error:
        if NOT_REGISTERED in str(error) and (missing := unregistered(cfg)):
            raise ConfigError(f'{cfg.filename}: {missing}') from error
        if isinstance(error, ConfigError):
            why = str(error)
        elif NOT_REGISTERED in str(error):
            why = f'{type(error).__name__}: {error}; name the module that registers it in custom_imports'
        else:
            why = f'{type(error).__name__}: {error}{users_line(error)}'
        raise ConfigError(f'{cfg.filename}: the model cannot be built: {why}') from error
