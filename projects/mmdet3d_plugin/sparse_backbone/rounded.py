"""A sparse encoder with the kernels of a libspconv file: batch normalisation folded in, then float16."""

import copy

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.proof.spconv_layers import layer_sources
from mmdeploy_ext.sparse.fold import fold
from projects.mmdet3d_plugin.sparse_backbone.model import axes


@torch.no_grad()
def half_encoder(encoder: nn.Module) -> nn.Module:
    """Return a copy of an encoder, in spconv as before, with the numbers that a libspconv file has.

    Args:
        encoder: with batch normalisation behind every convolution.
    """
    shape = tuple(int(size) for size in encoder.sparse_shape)
    channels = int(encoder.in_channels)
    traced = trace(encoder, order=axes(encoder), spatial_shape=shape, in_channels=channels)
    sources, rounded = layer_sources(traced), copy.deepcopy(encoder)
    for node in fold(traced).convolutions():
        source = sources[node.module]
        conv, norm = (rounded.get_submodule(path) for path in (source.convolution, source.norm))
        weight, bias = (
            torch.from_numpy(array.astype(np.float16).astype(np.float32))
            for array in (node.weight, node.bias)
        )
        conv.weight.copy_(weight if weight.shape == conv.weight.shape else weight.permute(1, 2, 3, 4, 0))
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_(1.0)
        norm.bias.copy_(bias)
        norm.eps = 0.0
    return rounded
