"""The sparse encoder inside a model, and the grid and shapes that its graph keeps."""

from typing import Any

from torch import nn

from mmdeploy_ext.families.sparse import EncoderSettings
from mmdeploy_ext.families.sparse_backbone import grid
from mmdeploy_ext.families.sparse_backbone.samples import PARTS, cells_of, parts_of
from mmdeploy_ext.models.sparse_backbone.model import axes


def encoder_path(model: nn.Module) -> str:
    """Return where a model's sparse encoder is."""
    path = getattr(model, 'encoder_path', None)
    if path:
        return path
    return next(key for key in PARTS if isinstance(getattr(model, key, None), nn.Module))


def encoder(model: nn.Module) -> nn.Module:
    """Return a model's sparse encoder."""
    return model.get_submodule(encoder_path(model))


def settings(cfg: Any, model: nn.Module) -> EncoderSettings:
    """Return order of axes, grid and channels of the encoder of a config."""
    parts, module = parts_of(cfg), encoder(model)
    order, shape = axes(module), module.sparse_shape
    cells = cells_of(cfg, parts)
    grid.check_sparse_shape(shape, cells, order, f'model.{parts["encoder"]} and model.{parts["voxels"]}')
    output = grid.dense_shape(module, shape, order)
    grid.check_output(cfg.model, output, cells, parts)
    channels = int(cfg.model[parts['encoder']]['in_channels'])
    return EncoderSettings(encoder_path(model), order, tuple(map(int, shape)), channels, output)
