"""Layers of a repository's own BEVFusion in the graphs: its mmdet3d is imported beside the installed one.

A copy of mmdet3d 0.x has the name of the installed mmdet3d and registers types that this has registered. Both
are put aside while the copy is imported and its model is built; then the layers of `LAYERS` take the places
of ours. All else the graphs compute by this package's code.

Glossary: B batch, C channels, Q queries, T cells of the map that the queries look at.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.compat.vendored_mmdet3d import stand_in_for_operators
from mmdeploy_ext.core.errors import ConfigError, one_line
from mmdeploy_ext.core.unregistered import registries

PACKAGE = 'mmdet3d'
"""Name of the copy in a repository, and of the installed library."""
REGISTERED_FOR_IT = (PACKAGE, 'spconv', 'mmdeploy_ext')
"""Packages whose types are registered beside the installed mmdet3d; a copy registers its own."""
LAYERS = (
    'encoders.camera.backbone',
    'encoders.camera.neck',
    'encoders.camera.vtransform.dtransform',
    'encoders.camera.vtransform.depthnet',
    'encoders.camera.vtransform.downsample',
    'fuser',
    'decoder.backbone',
    'decoder.neck',
    'heads.object.shared_conv',
    'heads.object.heatmap_head',
    'heads.object.class_encoding',
    'heads.object.decoder',
    'heads.object.prediction_heads',
)
"""Paths of layers that the graphs run as the repository has them; the sparse encoder is not among them."""
DEPTH_KERNEL = 'encoders.camera.vtransform.dtransform.0.weight'
"""Weight of the first convolution of the depth maps, whose second axis are their channels."""
QUERY_HEAD = 'TransFusionHead'
"""Class of the head, or a base of it, whose layers are taken; of other heads the graphs run ours."""


@contextlib.contextmanager
def repository_first(root: str) -> Iterator[None]:
    """Inside the block `import mmdet3d` gives the copy of a repository, which may register its types.

    `root` is the folder of the repository.

    Behind it, also after an error, `sys.path`, registries and the modules of the repository are as before;
    what the block imports from elsewhere stays imported.
    """
    with _modules_kept(Path(root).resolve()), _registries_kept() as all_registries:
        for registry in all_registries:
            registry.children.pop(PACKAGE, None)
            for name, registered in list(registry.module_dict.items()):
                if registered.__module__.partition('.')[0] in REGISTERED_FOR_IT:
                    del registry.module_dict[name]
        for name in [name for name in sys.modules if _top_level(name) == PACKAGE]:
            del sys.modules[name]
        sys.path.insert(0, root)
        yield


@contextlib.contextmanager
def _registries_kept() -> Iterator[list[Any]]:
    """Yield every registry; behind the block they have the types and children that they had before."""
    all_registries = list({id(registry): registry for registry in registries()}.values())
    tables = [table for registry in all_registries for table in (registry.module_dict, registry.children)]
    contents = [(table, dict(table)) for table in tables]
    try:
        yield all_registries
    finally:
        for table, content in contents:
            table.clear()
            table.update(content)


@contextlib.contextmanager
def _modules_kept(root: Path) -> Iterator[None]:
    """Behind the block `sys.path`, the modules of `PACKAGE` and those of the folder `root` are as before."""

    def is_theirs(name: str) -> bool:
        """Return whether a module's top-level package lies in `root`, or a part of it; never this package."""
        if _top_level(name) == _top_level(__name__):
            return False
        package = sys.modules.get(_top_level(name))
        places = getattr(package, '__path__', None) or [getattr(package, '__file__', None)]
        return any(place is not None and Path(place).resolve().parent == root for place in places)

    paths, modules = list(sys.path), dict(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = paths
        theirs = [name for name in sys.modules if name not in modules and is_theirs(name)]
        for name in {*theirs, *(name for name in sys.modules if _top_level(name) == PACKAGE)}:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in modules.items() if _top_level(name) == PACKAGE})


def _top_level(name: str) -> str:
    """Return the top-level package of a module."""
    return name.partition('.')[0]


def build_by_repository(cfg: Any) -> nn.Module:
    """Return the model of a config by the `build_model` of the mmdet3d that is imported, without weights.

    It is in evaluation mode. `cfg` is the repository's own config, an mmcv `ConfigDict`. In `cfg.model`, in
    place, `pretrained`, `train_cfg` and the `init_cfg` of the camera's backbone become None.
    """
    from mmdet3d.models import build_model

    cfg.model.pretrained = None
    cfg.model.train_cfg = None
    camera = cfg.model.encoders.get('camera')
    if camera:
        camera.backbone.init_cfg = None  # the weights that training starts from; the checkpoint has all
    return build_model(cfg.model, test_cfg=cfg.get('test_cfg')).eval()


def take_layers(model: nn.Module) -> None:
    """Put the layers of a repository's model into ours, in place, before weights are loaded.

    `model.fork` is the repository, a `fork.Fork`: its `layers` are then their paths, or its `import_error`
    says why there are none.

    Raises:
        ConfigError: the repository's view transform takes other depth maps than the graphs give.
    """
    from mmcv import ConfigDict

    fork = model.fork
    try:
        with repository_first(fork.root), _without_warnings():
            stand_in_for_operators()
            theirs = build_by_repository(ConfigDict(copy.deepcopy(fork.cfg)))
            package = Path(sys.modules[PACKAGE].__file__ or '').resolve()
            if not package.is_relative_to(Path(fork.root).resolve()):
                raise ImportError(f'{PACKAGE} is {package}, not the copy in {fork.root}')
    except Exception as error:  # whatever the repository's code raises; its own process is the reference
        fork.import_error = f'{type(error).__name__}: {one_line(error)}'
        return
    depth_kernels = [part.state_dict().get(DEPTH_KERNEL) for part in (model, theirs)]
    if None not in depth_kernels and depth_kernels[0].shape != depth_kernels[1].shape:
        raise ConfigError(
            f'{fork.root}: {DEPTH_KERNEL} takes {depth_kernels[1].shape[1]} depth channels, as in '
            f'mit-han-lab/bevfusion after db75150, and the graphs give {depth_kernels[0].shape[1]}; use the '
            f'code of db75150, which the published checkpoints are of'
        )
    fork.layers = tuple(path for path in LAYERS if _take_layer(model, theirs, path))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out what classes log of weights that training would start from."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _take_layer(model: nn.Module, theirs: nn.Module, path: str) -> bool:
    """Put the layer at a path into our model, if both have one; return whether they have."""
    from mmdeploy_ext.models.bevfusion.head import DecoderLayer  # imports mmdet3d

    head_classes = [base.__name__ for base in type(theirs.heads['object']).__mro__]
    if path.startswith('heads.') and QUERY_HEAD not in head_classes:
        return False
    parent, _, name = path.rpartition('.')
    try:
        layer, _ = theirs.get_submodule(path), model.get_submodule(path)
    except AttributeError:  # one sensor, no fuser, or a view transform without points
        return False
    if path == 'heads.object.decoder':
        for part in layer:
            if not isinstance(part, DecoderLayer):
                part.register_forward_pre_hook(_channels_first)
                part.register_forward_hook(_channels_last)
    owner = model.get_submodule(parent)
    owner.add_module(name, layer)
    return True


def _channels_first(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return what a decoder layer of these repositories takes: queries (B, C, Q) and keys (B, C, T).

    Our head calls it with (B, Q, C), (B, T, C) and their positions.
    """
    queries, keys, *positions = inputs
    return queries.transpose(1, 2), keys.transpose(1, 2), *positions


def _channels_last(layer: nn.Module, inputs: tuple[torch.Tensor, ...], queries: torch.Tensor) -> torch.Tensor:
    """Return refined queries as (B, Q, C)."""
    return queries.transpose(1, 2)
