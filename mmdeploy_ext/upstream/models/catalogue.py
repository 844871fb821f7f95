"""Models of this package by their config type, registered only if no other code has the type."""

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from mmdeploy_ext.base.config import types_of
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.base.unregistered import registries
from mmdeploy_ext.spec.registry import registered_models
from mmdeploy_ext.upstream import models
from mmdeploy_ext.upstream.compat.cuda_as_cpu import cuda_as_cpu

Class = TypeVar('Class', bound=type)

SHARED_2D = {
    'centernet_update': ('CenterNetUpdateHead',),
    'conditional_detr': (
        'ConditionalDETR', 'ConditionalDETRHead', 'ConditionalDetrTransformer', 'DABDETR', 'DABDETRHead',
        'ConditionalDetrTransformerDecoder', 'DABDetrTransformerDecoder', 'DABDetrTransformerEncoder',
    ),
    'convnext': ('ConvNeXt',),
    'crowddet': ('MultiInstanceBBoxHead',),
    'ddq': ('DDQDETR', 'DDQDETRHead', 'DDQTransformer', 'DDQTransformerDecoder'),
    'dino': ('DINO', 'DINOHead', 'DinoTransformer', 'DinoTransformerDecoder'),
    'instance_masks': (
        'BoxInst', 'BoxInstBboxHead', 'BoxInstMaskHead', 'CondInst', 'CondInstBboxHead', 'CondInstMaskHead',
        'RTMDetIns', 'RTMDetInsSepBNHead', 'CSPNeXt', 'CSPNeXtPAFPN', 'RTMDet', 'RTMDetSepBNHead',
    ),
    'v3det': ('CrossEntropyCustomLoss', 'NormedFCOSHead'),
}  # fmt: skip
"""Module -> types; they need mmdet."""
SHARED_3D = {
    'sparse_backbone.model': ('BEVFusionSparseEncoder', 'CenterPointSparseEncoder', 'LidarBackbone'),
}
"""Module -> types; they need mmdet3d."""


def folders() -> list[ModuleType]:
    """Return the packages that may list their own types: folders of models here, and in other packages."""
    return [*folders_in(models), *map(importlib.import_module, registered_models())]


def folders_in(package: ModuleType) -> list[ModuleType]:
    """Import the packages in a package."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg]
    return [importlib.import_module(f'{package.__name__}.{name}') for name in names]


def _with_folders(table: str, shared: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    rows = {f'{models.__name__}.{module}': types for module, types in shared.items()}
    for folder in folders():
        rows |= {f'{folder.__name__}.{name}': types for name, types in getattr(folder, table, {}).items()}
    return rows


MODELS_2D, MODELS_3D = _with_folders('MODELS_2D', SHARED_2D), _with_folders('MODELS_3D', SHARED_3D)
"""Full name of a module -> types; they need mmdet, or mmdet3d."""


def modules_by_type() -> dict[str, list[str]]:
    """Return type -> the modules that offer it."""
    modules: dict[str, list[str]] = {}
    for module, names in sorted((MODELS_2D | MODELS_3D).items()):
        for name in names:
            modules.setdefault(name, []).append(module)
    return modules


MODULES = modules_by_type()
LIBRARIES = ('mmcv', 'mmdet', 'mmdet3d', 'mmseg')
"""Packages with registries of models."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """A class that can be registered.

    Attributes:
        registry: mmcv's registry for it, such as `HEADS`.
        builds: types of this package that it builds without a config.
        beside: types, such as heads, one of which goes with this class in a config; () for the default class.
    """

    cls: type
    registry: Any
    builds: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


_OFFERS: dict[str, list[Offer]] = {}


def registered_if_named(
    registry: Any, builds: Sequence[str] = (), beside: Sequence[str] = ()
) -> Callable[[Class], Class]:
    """Decorator that offers a class for a registry of mmcv, without registering it."""

    def note(cls: Class) -> Class:
        _OFFERS.setdefault(cls.__name__, []).append(Offer(cls, registry, tuple(builds), tuple(beside)))
        return cls

    return note


def registered_types() -> set[str]:
    distinct = {id(registry): registry for registry in registries(LIBRARIES)}
    return {name for registry in distinct.values() for name in registry.module_dict}


def _is_registered(name: str) -> bool:
    return any(name in offer.registry.module_dict for offer in _OFFERS.get(name, ()))


def register(names: Iterable[str], config_types: Iterable[str] = ()) -> None:
    """Register this package's classes of some types, and the types that they build."""
    pending, config_types = [name for name in names if name in MODULES], set(config_types)
    if all(len(MODULES[name]) == 1 and _is_registered(name) for name in pending):
        return  # without a search in all modules
    registered = registered_types()
    while pending:
        name = pending.pop(0)
        if name in registered and (len(MODULES[name]) == 1 or not config_types):
            continue
        for module in MODULES[name]:
            if module not in sys.modules:
                before = set(sys.modules)
                importlib.import_module(module)
                new_packages = {name.partition('.')[0] for name in sys.modules.keys() - before}
                if new_packages & set(LIBRARIES):  # which may have the type
                    registered = registered_types()
        offer = next((offer for offer in _OFFERS[name] if config_types & {*offer.beside}), None)
        offer = offer or next(offer for offer in _OFFERS[name] if not offer.beside)
        present = offer.registry.module_dict.get(name)
        if present is not offer.cls and any(present is of_type.cls for of_type in _OFFERS[name]):
            del offer.registry.module_dict[name]
            registered.discard(name)
        if name not in registered:
            offer.registry.register_module(module=offer.cls)
            registered.add(name)
        pending = [*offer.builds, *pending]


def register_named(cfg: Any) -> None:
    """Register the types of this package that a Config names and no other code has registered."""
    named = {name for _, name in types_of(dict(cfg.items()))}
    nearest_types: dict[str, str] = {}  # name of a derived class -> the nearest type of this package
    pending = [offer.cls for offers in _OFFERS.values() for offer in offers]
    while pending:
        for kind in pending.pop().__subclasses__():
            nearest_types[kind.__name__] = nearest_base(kind, MODULES)
            pending.append(kind)
    types = sorted(named | {base for name, base in nearest_types.items() if name in named})
    register(types, types)


def register_after(import_modules: Callable[[], None], cfg: Any) -> None:
    """Import a config's own modules, where CUDA means the CPU without a GPU, and then `register_named`."""
    with cuda_as_cpu():
        import_modules()
    register_named(cfg)


def register_all(modules: dict[str, tuple[str, ...]]) -> None:
    register(name for names in modules.values() for name in names)
