"""What every converter does besides renaming: the model's tensors, an account of every key, and the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.errors import CheckpointError, ConfigError
from mmdeploy_ext.weights.checkpoint import check_finite, check_types, misfits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


def model_shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the state dict of the config's model; see `model_tensors`."""
    return {name: tuple(tensor.shape) for name, tensor in model_tensors(cfg).items()}


def model_tensors(cfg: Any) -> Tensors:
    """Return the state dict of the config's model, without giving it memory.

    Raises:
        ConfigError: the model cannot be built.
    """
    from mmdet.models import build_detector

    model = cfg.model.copy()
    model.pop('pretrained', None)
    try:
        with torch.device('meta'):
            built = build_detector(model)
    except Exception as error:
        raise ConfigError(f'{cfg.filename}: the model cannot be built ({error})') from error
    return built.state_dict()


def in_order(tensors: Tensors, own: Tensors, config: str, advice: str) -> Tensors:
    """Return converted tensors in the model's order; names and shapes are the model's own, every one.

    Args:
        tensors: by the model's names.
        own: of `model_tensors`.
        config: file of the config, for the message.
        advice: which config to give instead, for the message.

    Raises:
        CheckpointError: a key or shape that is not the model's; no checkpoint named.
    """
    missing, unexpected = (
        [key for key in one if key not in other] for one, other in ((own, tensors), (tensors, own))
    )
    if problems := misfits(own, tensors, missing, unexpected):
        raise CheckpointError(f'does not fit the model of {config}: {problems}{advice}')
    return {key: tensors[key] for key in own}


def check_numbers(source: str | Path, tensors: Mapping[str, torch.Tensor], own: Tensors) -> None:
    """Refuse codes in place of weights, and weights that are not finite.

    Raises:
        CheckpointError: names the checkpoint and the keys.
    """
    check_types(source, tensors, own)
    check_finite(source, tensors)
