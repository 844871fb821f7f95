"""The model of a config, and its head."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import AbsentPackageError, ConfigError
from mmdeploy_ext.base.source_code import DISTRIBUTIONS, OURS, users_method
from mmdeploy_ext.base.unregistered import registries, unregistered
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.compat.stand_ins import failed

if TYPE_CHECKING:
    import torch

SAMPLING = ('__getitem__', 'pre_pipeline', 'prepare_test_img', 'prepare_test_data', 'get_data_info')
NOT_REGISTERED = 'is not in the'
HEAD_KEYS = ('query_head', 'bbox_head', 'mask_head', 'pts_bbox_head')
"""Attributes of detectors with the head of the results; the first that exists counts."""


def names_of_class(registry: Any, name: Any) -> list[str]:
    part_class = registered_class(registry, name)
    if part_class is None:
        return [str(name)]
    return [str(name), *(base.__name__ for base in part_class.__mro__)]


def data_class(kind: Any, registry: str) -> type | None:
    return next(iter(data_classes(kind, registry)), None)


def data_classes(kind: Any, registry: str) -> list[type]:
    if isinstance(kind, type):
        return [kind]
    from mmdet.datasets import builder

    builders = filter(None, (sys.modules.get('mmdet3d.datasets.builder'), builder))
    registries = [vars(module)[registry] for module in builders if registry in vars(module)]
    classes = (found.get(str(kind)) for found in registries)  # mmdet3d before 1.0 has those of mmdet
    return [registered for registered in classes if isinstance(registered, type)]


def makes_samples(dataset: type) -> bool:
    """Return whether the user's code makes the test samples of a data set."""
    if any(users_method(dataset, name) for name in SAMPLING):
        return True
    code = getattr(dataset.__init__, '__code__', None)
    names = (*code.co_names, *code.co_varnames) if code else ()
    return 'pipeline' in names and bool(users_method(dataset, '__init__'))


def is_users_step(step: Any) -> bool:
    """Return whether a step of a pipeline runs the user's code."""
    kind = data_class(step.get('type'), 'PIPELINES')
    return kind is not None and bool(users_method(kind, '__call__'))


def registered_class(registry: Any, name: Any) -> type | None:
    """Return a class by name from one of mmcv's registries or mmdet's models."""
    from mmdet.models import builder

    models = getattr(builder, 'MODELS', None)
    registered = registry.get(str(name)) or (models and models.get(str(name)))
    return registered if isinstance(registered, type) else None


def head_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the head of the results; mmdet's SOLO also has a `bbox_head` of None."""
    heads = [getattr(model, key, None) for key in HEAD_KEYS]
    for head in heads:
        if head is not None:
            return head
    raise ConfigError(
        f'{type(model).__name__}: has none of {", ".join(HEAD_KEYS)}; a family of such a model must '
        'define num_classes and limits itself'
    )


def has_head(model: torch.nn.Module) -> bool:
    return any(getattr(model, key, None) is not None for key in HEAD_KEYS)


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    logger = logging.getLogger('mmcv')
    level, logger.level = logger.level, logging.WARNING
    try:
        yield
    finally:
        logger.level = level


@contextlib.contextmanager
def _empty_checkpoints() -> Iterator[None]:
    from mmcv.runner.checkpoint import CheckpointLoader

    with patched(CheckpointLoader, load_checkpoint=lambda *args, **kwargs: {}):
        yield


def initialise(model: torch.nn.Module) -> None:
    """Run a model's own `init_weights`, without pretrained weights, as far as it goes."""
    with warnings.catch_warnings(), _without_progress(), _empty_checkpoints(), contextlib.suppress(Exception):
        warnings.simplefilter('ignore')
        model.init_weights()


def built_unpretrained(build: Callable[[], torch.nn.Module], backbone: Any) -> torch.nn.Module:
    checkpoints = {key: backbone[key] for key in ('pretrained', 'init_cfg') if backbone and backbone.get(key)}
    for key in checkpoints:
        backbone[key] = None
    try:
        return build()
    except Exception as error:
        if (checkpoints or isinstance(error, OSError)) and NOT_REGISTERED not in str(error):
            backbone.update(checkpoints)
            with _empty_checkpoints():
                return build()
        if not isinstance(error, KeyError) or not backbone or 'pretrained' in backbone:
            raise
        if 'pretrained' not in str(error):
            raise
        backbone['pretrained'] = None
        return build()


def own_builder(kind: Any) -> Callable[..., torch.nn.Module] | None:
    """Return `build_model` or `build_detector` of the repository that has a model's type, or None.

    Some have a registry of their own, or keys that their `builder` takes from the config first.
    """
    from mmdet.models.builder import DETECTORS

    found = itertools.chain([DETECTORS], registries())  # the search takes a tenth of a second
    kinds = (registry.module_dict.get(str(kind)) for registry in found)
    module = next((cls.__module__ for cls in kinds if isinstance(cls, type)), '')
    while module.partition('.')[0] not in ('', OURS.name, *DISTRIBUTIONS):
        module = module.rpartition('.')[0]
        builder = vars(sys.modules.get(f'{module}.builder', object))
        for name in ('build_model', 'build_detector'):
            if function := builder.get(name):
                return functools.partial(_call_with_known, function)
    return None


def _call_with_known(function: Callable[..., torch.nn.Module], cfg: Any, **given: Any) -> torch.nn.Module:
    """Call a builder with those of the keywords that it takes."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return function(cfg, **{key: value for key, value in given.items() if takes_any or key in parameters})


def build_without_weights(
    cfg: Any, build: Callable[..., torch.nn.Module], backbone: str = ''
) -> torch.nn.Module:
    """Return the model of a config in evaluation mode, without pretrained weights."""
    from mmdeploy_ext.upstream.compat.cuda_as_cpu import cuda_as_cpu, start_for
    from mmdeploy_ext.upstream.compat.plain_kernels import use_plain_attention

    model_cfg = cfg.model.copy()
    model_cfg.pop('pretrained', None)
    part = model_cfg.get(backbone) or {}  # a part that is None is not there
    try:
        with warnings.catch_warnings(), _without_progress(), cuda_as_cpu():
            warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
            build = own_builder(model_cfg.get('type')) or build
            model = built_unpretrained(lambda: build(model_cfg.copy(), test_cfg=cfg.get('test_cfg')), part)
            model.eval()  # returns None for ImVoteNet of mmdet3d 1.0.0rc6
            use_plain_attention(model)
        start_for(model)
        return model
    except Exception as error:
        if NOT_REGISTERED in str(error) and (missing := unregistered(cfg, failed)):
            raise ConfigError(f'{cfg.filename}: {missing}') from error
        if isinstance(error, ConfigError | AbsentPackageError):
            why = str(error)
        elif NOT_REGISTERED in str(error):
            why = f'{type(error).__name__}: {error}; name the module that registers it in custom_imports'
        else:
            why = f'{type(error).__name__}: {error}{users_line(error)}'
        raise ConfigError(f'{cfg.filename}: the model cannot be built: {why}') from error
