"""Reads the weights of a pickled model without running its code.

NVIDIA's PTQ scripts save modules (`torch.save(model)`). All names except a few that build tensors become
inert objects that keep their state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.errors import CheckpointError, named
from mmdeploy_ext.upstream.weights.checkpoint import plain_tensors
from mmdeploy_ext.upstream.weights.inert_pickle import INERT_PICKLE, StandIn

CONVERT = (
    'Load it in its own environment and run `torch.save({"state_dict": model.state_dict()}, FILE)`, which '
    'also keeps the calibrated ranges'
)


def read_pickled(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of a pickled module, of its wrapper, or of a checkpoint with objects, on the CPU.

    Names are without one `module.`; quantisers' `_amax` are included. CheckpointError: unreadable this way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about sources of classes that are not installed
            content = torch.load(path, map_location='cpu', weights_only=False, pickle_module=INERT_PICKLE)
        weights = dict(_find_weights(content))
    except Exception as error:  # hostile or exotic pickles may raise anything
        raise CheckpointError(
            f'{path}: holds a pickled model that cannot be read without running its code '
            f'({type(error).__name__}: {error}). {CONVERT}'
        ) from error
    if not weights:
        raise CheckpointError(f'{path}: has objects but no weights that mm2onnx can find. {CONVERT}')
    with named(path):
        return plain_tensors(weights)


def _find_weights(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, StandIn):
        yield from _module_weights(content, '')
    elif isinstance(content, dict):
        for name in ('state_dict', 'model'):
            if isinstance(content.get(name), dict | StandIn):
                yield from _find_weights(content[name])
                return
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                yield str(key), value


def _module_weights(module: StandIn, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    state = module.state if isinstance(module.state, dict) else {}
    parameters, buffers, children = (
        state[key] if isinstance(state.get(key), dict) else {}
        for key in ('_parameters', '_buffers', '_modules')
    )
    not_saved = state.get('_non_persistent_buffers_set')
    if isinstance(not_saved, set):
        buffers = {name: buffer for name, buffer in buffers.items() if name not in not_saved}
    for name, value in (*parameters.items(), *buffers.items()):
        if isinstance(value, torch.Tensor):
            yield f'{prefix}{name}', value.detach()
    for name, child in children.items():
        if isinstance(child, StandIn):
            yield from _module_weights(child, f'{prefix}{name}.')
